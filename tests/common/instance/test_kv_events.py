"""A consumer that knows only vLLM's format, against an engine: ordered, complete, after losses too.

It reads with `zmq` and `msgpack`, and hashes the prompts again from the token ids it is told.
"""

from __future__ import annotations

import asyncio
import random

import msgpack
import pytest
import zmq
import zmq.asyncio

from common.engine.driver import EngineDriver
from common.engine.prefix import short_hash
from common.errors import ConfigError
from common.instance.kv_event_format import AllBlocksCleared
from common.instance.kv_events import KVEventPublisher
from common.instance.kv_events_config import KVEventsConfig, binds, kv_events_config
from tests.common.engine.standin_model import make_engine, make_request

ON = '"enable_kv_cache_events": true'
FREE = "tcp://127.0.0.1:0"


class Consumer:
    """Subscribes, loses messages on purpose, asks for what it misses, applies all in order."""

    def __init__(self, publisher, loses=0.0):
        context = zmq.asyncio.Context.instance()
        self.sub = context.socket(zmq.SUB)
        self.sub.connect(publisher.endpoint)
        self.sub.setsockopt(zmq.SUBSCRIBE, b"")
        self.dealer = context.socket(zmq.DEALER)
        self.dealer.connect(publisher.replay_endpoint)
        self.rng = random.Random(3)
        self.loses = loses
        self.next_seq = 0
        self.blocks: dict[int, tuple[int | None, tuple[int, ...]]] = {}  # parent and tokens
        self.num_replayed = 0

    async def follow(self, until_seq):
        while self.next_seq <= until_seq:
            try:
                _, number, payload = await asyncio.wait_for(self.sub.recv_multipart(), 1.0)
            except asyncio.TimeoutError:
                await self.replay()  # the last ones were lost
                continue
            seq = int.from_bytes(number, "big")
            if self.rng.random() < self.loses or seq < self.next_seq:
                continue
            if seq > self.next_seq:
                await self.replay()
            if seq == self.next_seq:
                self.apply(payload)

    async def replay(self):
        await self.dealer.send_multipart([b"", self.next_seq.to_bytes(8, "big")])
        while True:
            frames = await asyncio.wait_for(self.dealer.recv_multipart(), 5.0)
            assert len(frames) == 4
            assert frames[0] == b""
            seq = int.from_bytes(frames[2], "big", signed=True)
            if seq == -1:
                assert frames == [b"", b"", b"\xff" * 8, b""]
                return
            assert seq == self.next_seq, "in order, without a gap"
            self.num_replayed += 1
            self.apply(frames[3])

    def apply(self, payload):
        time_s, events, rank = msgpack.unpackb(payload)
        assert time_s > 1e9
        assert rank == 0
        self.next_seq += 1
        for event in events:
            if event["type"] == "AllBlocksCleared":
                self.blocks.clear()
            elif event["type"] == "BlockRemoved":
                for block in event["block_hashes"]:
                    del self.blocks[block]
            else:
                self.store(event)

    def store(self, event):
        size, parent = event["block_size"], event["parent_block_hash"]
        assert len(event["token_ids"]) == size * len(event["block_hashes"])
        assert event["medium"] == "CPU"
        for i, block in enumerate(event["block_hashes"]):
            assert block not in self.blocks
            self.blocks[block] = parent, tuple(event["token_ids"][i * size : (i + 1) * size])
            parent = block

    def prefixes(self):
        """The token ids of every chain that is whole."""
        found = set()
        for block in self.blocks:
            tokens: tuple[int, ...] = ()
            at: int | None = block
            while at in self.blocks:
                at, own = self.blocks[at]
                tokens = own + tokens
            if at is None:
                found.add(tokens)
        return found

    def close(self):
        self.sub.close(linger=0)
        self.dealer.close(linger=0)


async def computed(driver, prompts):
    done = asyncio.Event()
    left = set(range(len(prompts)))

    def on_step(result):
        left.difference_update(int(e.request_id) for e in result.events if e.finish_reason)
        if not left:
            done.set()

    driver.listeners.append(on_step)
    for number, prompt in enumerate(prompts):
        request = make_request(str(number), prompt, 1)
        await driver.call(lambda engine, request=request: engine.add(request))
    await asyncio.wait_for(done.wait(), 20)
    driver.listeners.remove(on_step)


def publishing(body, num_blocks=24, **options):
    async def run():
        config = KVEventsConfig(True, endpoint=FREE, replay_endpoint=FREE, **options)
        publisher = KVEventPublisher(config, block_size=4, medium="CPU")
        driver = EngineDriver(make_engine(num_blocks=num_blocks))
        driver.start(asyncio.get_running_loop())
        try:
            await body(publisher, driver)
        finally:
            await publisher.close()
            await driver.stop()

    asyncio.run(run())


@pytest.mark.parametrize("loses", [0.0, 0.4])
def test_a_consumer_that_loses_messages_knows_the_cache_in_the_end(loses):
    rng = random.Random(1)
    prompts = [[rng.randrange(3)] * 8 + [rng.randrange(97) for _ in range(6)] for _ in range(60)]

    async def body(publisher, driver):
        consumer = Consumer(publisher, loses)
        await asyncio.sleep(0.2)  # subscribed
        publisher.start(driver)
        for start in range(0, 60, 10):
            await computed(driver, prompts[start : start + 10])
        await asyncio.wait_for(consumer.follow(publisher._next_seq - 1), 20)
        held = await driver.call(lambda engine: engine._pool.digests())
        assert consumer.blocks.keys() == set(map(short_hash, held))
        assert tuple(prompts[-1][:12]) in consumer.prefixes()
        assert (consumer.num_replayed > 0) is (loses > 0)
        consumer.close()

    publishing(body)


def test_whoever_comes_late_gets_all_by_replay():
    async def body(publisher, driver):
        publisher.start(driver)
        await computed(driver, [[5] * 12])
        consumer = Consumer(publisher)
        await consumer.replay()
        assert consumer.prefixes() == {(5,) * 4, (5,) * 8, (5,) * 12}
        consumer.close()

    publishing(body)


def test_what_is_no_request_for_a_replay_is_ignored():
    async def body(publisher, driver):
        publisher.start(driver)
        await computed(driver, [[5] * 12])
        consumer = Consumer(publisher)
        for frames in ([b""], [b"x", bytes(8)], [b"", b""], [b"", bytes(9)], [b"", bytes(8), b"x"]):
            stranger = zmq.asyncio.Context.instance().socket(zmq.DEALER)
            stranger.connect(publisher.replay_endpoint)
            await stranger.send_multipart(frames)
            stranger.close(linger=1000)
        await consumer.replay()
        assert consumer.prefixes() == {(5,) * 4, (5,) * 8, (5,) * 12}
        consumer.close()

    publishing(body)


def test_replay_is_bounded_and_begins_where_it_can():
    async def body(publisher, driver):
        for _ in range(25):
            publisher.publish([AllBlocksCleared()])
        dealer = zmq.asyncio.Context.instance().socket(zmq.DEALER)
        dealer.connect(publisher.replay_endpoint)
        for garbage in ([b""], [b"", b"\0" * 7], [b"x", b"\0" * 8], [b"", b"\0" * 8, b""]):
            await dealer.send_multipart(garbage)
        await dealer.send_multipart([b"", (3).to_bytes(8, "big")])
        seqs: list[int] = []
        while not seqs or seqs[-1] != -1:
            frames = await asyncio.wait_for(dealer.recv_multipart(), 5)
            seqs.append(int.from_bytes(frames[2], "big", signed=True))
        assert seqs == [*range(15, 25), -1]
        dealer.close(linger=0)

    publishing(body, buffer_steps=10)


def test_topic_and_sources():
    async def body(publisher, driver):
        (source,) = publisher.sources()
        assert source["topic"] == "kv@here@demo"
        assert source["data_parallel_rank"] == 0
        sub = zmq.asyncio.Context.instance().socket(zmq.SUB)
        sub.connect(source["endpoint"])
        sub.setsockopt(zmq.SUBSCRIBE, b"kv@here")
        await asyncio.sleep(0.2)
        publisher.start(driver)
        topic, number, _ = await asyncio.wait_for(sub.recv_multipart(), 5)
        assert (topic, number) == (b"kv@here@demo", bytes(8))
        sub.close(linger=0)

    publishing(body, topic="kv@here@demo")


def test_a_taken_port_is_one_line():
    async def body(publisher, driver):
        taken = KVEventsConfig(True, endpoint=FREE, replay_endpoint=publisher.endpoint)
        with pytest.raises(ConfigError, match="Address already in use"):
            KVEventPublisher(taken, block_size=4, medium="CPU")

    publishing(body)


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "{}", '{"publisher": "zmq"}', f'{{{ON}, "publisher": "null"}}']
)
def test_off(text):
    assert kv_events_config(text) is None


def test_defaults_are_those_of_vllm_but_for_the_address():
    config = kv_events_config(f"{{{ON}}}")
    assert config is not None
    assert (config.endpoint, config.buffer_steps, config.hwm, config.topic) == (
        "tcp://127.0.0.1:5557",
        10_000,
        100_000,
        "",
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ("{", "--kv-events-config"),
        ('{"enabled": true}', "enabled"),
        (f'{{{ON}, "publisher": "kafka"}}', "kafka"),
        (f'{{{ON}, "endpoint": "tcp://*:5557"}}', "allow_remote"),
        (f'{{{ON}, "endpoint": "tcp://indexer:5557"}}', "allow_remote"),
        (f'{{{ON}, "replay_endpoint": "tcp://0.0.0.0:1"}}', "allow_remote"),
        (f'{{{ON}, "endpoint": "inproc://x"}}', "expected tcp"),
        (f'{{{ON}, "endpoint": "tcp://127.0.0.1"}}', "expected tcp"),
        (f'{{{ON}, "buffer_steps": 0}}', "buffer_steps"),
    ],
)
def test_refused_at_start_by_name(settings, complaint):
    with pytest.raises(ConfigError, match="--kv-events-config.*") as caught:
        kv_events_config(settings)
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "bound"),
    [
        ("tcp://*:5557", True),
        ("tcp://0.0.0.0:5557", True),
        ("tcp://127.0.0.1:5557", True),
        ("tcp://[::1]:5557", True),
        ("ipc:///tmp/x", True),
        ("tcp://indexer:5557", False),
        ("tcp://10.0.0.7:5557", False),
    ],
)
def test_who_binds(endpoint, bound):
    allowed = f'{{{ON}, "endpoint": "{endpoint}", "allow_remote": true}}'
    assert kv_events_config(allowed) is not None
    assert binds(endpoint) is bound
