"""A prefill and a decode worker in one process: real engines, real side channel, hand-made proxy.

The oracle is the co-located run: the same engine code without any hand-over.
"""

import asyncio
import contextlib
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.config import ServeConfig
from common.instance.parts import build_engine
from common.request import EngineRequest, SamplingParams
from common.wire import Abort, Accepted, Failed, RunDecode, RunPrefill, RunWhole, Tokens
from decode.worker import DecodeWorker
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.identity import KVIdentity
from kv_transfer.messages import Finish
from kv_transfer.producer import KVProducer
from kv_transfer.setup import prefix_store, region_of, transport_of
from kv_transfer.stored_prefix import StoredPrefix
from prefill.worker import PrefillWorker
from tests.common.parallel.in_processes import in_processes
from tests.kv_transfer.ends import NEEDS_NIXL

MODEL = str(Path(__file__).parent.parent.parent / "models" / "xpyd-demo")
CONFIG = ServeConfig(
    model=MODEL,
    load_format="dummy",
    dtype="float32",
    max_model_len=512,
    max_num_seqs=8,
    max_num_batched_tokens=64,
    block_size=16,
    kv_cache_memory=16 << 20,
    device="cpu",
)


class Proxy:
    """What the fleet's relay does, by hand: collects what each side says of a request."""

    def __init__(self):
        self.accepted = {}
        self.events: dict[str, dict[str, list[Any]]] = {"p": {}, "d": {}}
        self.failed = {}
        self.changed = asyncio.Event()

    def sender(self, side):
        def send(peer, message):
            match message:
                case Accepted(request_id=request_id, handle=handle):
                    self.accepted[side, request_id] = handle
                case Tokens(events=events):
                    for event in events:
                        self.events[side].setdefault(event.request_id, []).append(event)
                case Failed(request_id=request_id):
                    self.failed[side, request_id] = message
            self.changed.set()
            return True

        return send

    async def until(self, condition, timeout_s=20.0):
        async def wait():
            while not condition():
                self.changed.clear()
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.02)

        await asyncio.wait_for(wait(), timeout_s)

    def finished(self, side, request_id):
        events = self.events[side].get(request_id, [])
        return bool(events) and events[-1].finish_reason is not None

    def tokens(self, request_id):
        """Deduplicated by index, as the relay does."""
        found: dict[int, int] = {}
        for side in ("p", "d"):
            for event in self.events[side].get(request_id, []):
                for offset, token in enumerate(event.token_ids):
                    assert found.setdefault(event.index + offset, token) == token
        return [found[index] for index in sorted(found)]


class Pair:
    def __init__(self, proxy, prefill, decode, prefill_parts, decode_parts):
        self.proxy = proxy
        self.prefill = prefill
        self.decode = decode
        self.parts = {"p": prefill_parts, "d": decode_parts}

    async def start(self, made):
        self.prefill.handle(b"proxy", RunPrefill(made, 1))
        await self.proxy.until(lambda: ("p", made.request_id) in self.proxy.accepted)
        handle = self.proxy.accepted["p", made.request_id]
        self.decode.handle(b"proxy", RunDecode(made, handle, 1))
        return handle

    async def run(self, made):
        await self.start(made)
        await self.proxy.until(lambda: self.proxy.finished("d", made.request_id))
        return self.proxy.tokens(made.request_id)

    async def whole(self, made):
        self.decode.handle(b"proxy", RunWhole(made, 1))
        await self.proxy.until(lambda: self.proxy.finished("d", made.request_id))
        return self.proxy.tokens(made.request_id)

    async def at_rest(self, timeout_s=60.0):
        deadline = time.monotonic() + timeout_s
        while not all([await self._is_at_rest(parts) for parts in self.parts.values()]):
            assert time.monotonic() < deadline, "blocks are still taken"
            await asyncio.sleep(0.02)
        assert self.prefill.num_open() == 0
        assert self.decode.num_open() == 0

    async def _is_at_rest(self, parts):
        counts = await parts.driver.call(lambda engine: engine.ledger())
        return counts["free"] + counts["cached"] == counts["total"]


@contextlib.asynccontextmanager
async def pair(
    connector="shm", block_sizes=(16, 16), quantization=(None, None), num_ranks=(1, 1), **settings
):
    """`block_sizes`, `quantization`, `num_ranks`: of the prefill and of the decode instance."""
    proxy = Proxy()
    parts = [
        build_engine(
            replace(CONFIG, block_size=size, quantization=how, tensor_parallel_size=count),
            in_processes(count),
        )
        for size, how, count in zip(block_sizes, quantization, num_ranks, strict=True)
    ]
    for each in parts:
        each.driver.start(asyncio.get_running_loop())
    config = KVTransferConfig(connector=connector, **settings)

    def identity(name, each):
        return KVIdentity(name, f"{name}-{uuid.uuid4().hex}", each.kv_fingerprint)

    def free(blocks):
        parts[0].driver.post(lambda engine: engine.free(blocks))

    info = identity("p", parts[0])
    transport = transport_of(config, parts[0].cache, info)
    producer = KVProducer(
        info,
        region_of(parts[0].cache),
        transport,
        free=free,
        epochs=parts[0].engine.epochs,
        lease_s=config.lease_s,
    )
    await producer.start("tcp://127.0.0.1:0")
    info = identity("d", parts[1])
    consumer = KVConsumer(
        info,
        region_of(parts[1].cache),
        transport_of(config, parts[1].cache, info),
        staging=lambda region, theirs: make_transport(config, region, theirs),
    )
    store = prefix_store(config, transport)
    prefill = PrefillWorker(
        parts[0].driver,
        producer,
        proxy.sender("p"),
        block_size=block_sizes[0],
        stored=None if store is None else StoredPrefix(parts[0].driver, store),
    )
    store = prefix_store(config, consumer.transport)
    decode = DecodeWorker(
        parts[1].driver,
        consumer,
        proxy.sender("d"),
        max_num_waiting=64,
        stored=None if store is None else StoredPrefix(parts[1].driver, store),
    )
    try:
        yield Pair(proxy, prefill, decode, *parts)
    finally:
        await prefill.close()
        await decode.close()
        for each in parts:
            await each.driver.stop()
            if each.ranks is not None:
                each.ranks.close()
            each.cache.close()


def prompt(length, seed=0):
    return tuple((seed * 7919 + i * i * 31 + i) % 500 for i in range(length))


def make(request_id, length, seed=0, **sampling):
    params = {"max_tokens": 12, "temperature": 0.0, "ignore_eos": True} | sampling
    return EngineRequest(request_id, prompt(length, seed), SamplingParams(**params))


@pytest.mark.parametrize("length", [1, 15, 16, 17, 64, 200])
def test_tokens_equal_those_of_one_instance(length):
    async def body():
        async with pair() as both:
            expected = await both.whole(make("whole", length))
            assert await both.run(make("apart", length)) == expected
            assert len(expected) == 12
            await both.at_rest()

    asyncio.run(body())


def test_seeded_sampling_draws_the_same():
    async def body():
        async with pair() as both:
            sampling = {"temperature": 0.9, "seed": 1234, "top_p": 0.95}
            expected = await both.whole(make("whole", 50, **sampling))
            assert await both.run(make("apart", 50, **sampling)) == expected

    asyncio.run(body())


@pytest.mark.parametrize("block_sizes", [(16, 32), (32, 16), (64, 16), (16, 48)])
def test_block_sizes_may_differ(block_sizes):
    """Chunks of 64 tokens end where blocks of 48 do not; the last block is seldom full."""

    async def body():
        async with pair(block_sizes=block_sizes) as both:
            for length in (1, 15, 33, 64, 200):
                expected = await both.whole(make(f"whole{length}", length, seed=1))
                both.prefill.handle(b"proxy", RunWhole(make(f"whole-p{length}", length, seed=1), 1))
                await both.proxy.until(lambda n=length: both.proxy.finished("p", f"whole-p{n}"))
                assert both.proxy.tokens(f"whole-p{length}") == expected
                assert await both.run(make(f"apart{length}", length, seed=2)) == await both.whole(
                    make(f"again{length}", length, seed=2)
                )
            assert (both.decode.counts.loads, both.decode.counts.recomputes) == (5, 0)
            await both.at_rest()

    asyncio.run(body())


@pytest.fixture(scope="module")
def one_rank():
    """(requests, their tokens by an engine with one rank)"""
    requests = [
        make(f"r{i}", length, seed=i, temperature=0.8 * (i % 2), top_p=0.95)
        for i, length in enumerate((1, 16, 33, 150))
    ]

    async def body():
        async with pair() as both:
            return [await both.whole(each) for each in requests]

    return requests, asyncio.run(body())


@pytest.mark.parametrize(
    "connector, num_ranks, block_sizes",
    [
        ("shm", (2, 1), (16, 16)),
        ("shm", (1, 2), (32, 16)),
        pytest.param("nixl", (2, 2), (16, 16), marks=NEEDS_NIXL),
        ("shared_storage", (4, 1), (16, 16)),  # with more ranks than KV heads
        ("nccl", (1, 2), (16, 16)),
    ],
)
def test_instances_may_have_several_ranks(connector, num_ranks, block_sizes, one_rank, tmp_path):
    """As many on both sides or not: same tokens, and decode computes no prompt."""
    requests, expected = one_rank

    async def body():
        storage = {"storage_dir": str(tmp_path)} if connector == "shared_storage" else {}
        async with pair(connector, block_sizes, num_ranks=num_ranks, **storage) as both:
            found = await asyncio.gather(*(both.run(each) for each in requests))
            assert found == expected
            assert (both.decode.counts.loads, both.decode.counts.recomputes) == (4, 0)
            await both.at_rest()

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["shared_storage", pytest.param("nixl", marks=NEEDS_NIXL)])
def test_block_sizes_may_differ_over_every_connector(connector, tmp_path):
    async def body():
        storage = {"storage_dir": str(tmp_path)} if connector == "shared_storage" else {}
        async with pair(connector, (16, 32), **storage) as both:
            apart = await both.run(make("apart", 200))
            assert apart == await both.whole(make("whole", 200))
            assert (both.decode.counts.loads, both.decode.counts.recomputes) == (1, 0)
            await both.at_rest()

    asyncio.run(body())


def test_the_ledger_tells_what_is_held_and_by_whom():
    async def body():
        async with pair() as both:
            made = make("r", 50)
            both.prefill.handle(b"proxy", RunPrefill(made, 1))
            await both.proxy.until(lambda: both.proxy.tokens("r"))
            (row,) = both.prefill.ledger()["leases"]
            assert (row["request_id"], row["state"], row["peer"]) == ("r", "complete", "")
            assert row["blocks"] == 4 and 0 < row["lease_s"] <= 10
            blocks = await both.parts["p"].driver.call(lambda engine: engine.ledger())
            assert blocks["held"] == both.prefill.ledger()["transfers"]["blocks_held"] == 4
            handle = both.proxy.accepted["p", "r"]
            both.decode.handle(b"proxy", RunDecode(made, handle, 1))
            await both.proxy.until(lambda: both.proxy.finished("d", "r"))
            await both.at_rest()
            assert both.prefill.ledger()["leases"] == both.decode.ledger()["loads"] == []
            ended = both.decode.ledger()["transfers"]
            assert (ended["blocks_quarantined"], ended["transfers_pending"]) == (0, 0)
            for parts in both.parts.values():
                blocks = await parts.driver.call(lambda engine: engine.ledger())
                assert blocks["held"] == blocks["reserved"] == 0 and blocks["blocks"] == []

    asyncio.run(body())


def test_a_handle_of_another_prompt_serves_nobody():
    """As a proxy that mixes requests up would pass it on: same length, other text."""

    async def body():
        async with pair() as both:
            both.prefill.handle(b"proxy", RunPrefill(make("one", 50, seed=1), 1))
            await both.proxy.until(lambda: ("p", "one") in both.proxy.accepted)
            wrong = both.proxy.accepted["p", "one"]
            expected = await both.whole(make("whole", 50, seed=2))
            both.decode.handle(b"proxy", RunDecode(make("two", 50, seed=2), wrong, 1))
            await both.proxy.until(lambda: both.proxy.finished("d", "two"))
            assert both.proxy.tokens("two") == expected
            assert both.decode.counts.recomputes == 1
            both.prefill.handle(b"proxy", Abort("one"))
            await both.at_rest()

    asyncio.run(body())


def test_decode_computes_nothing_of_the_prompt():
    async def body():
        async with pair() as both:
            steps = both.parts["d"].driver.num_steps
            await both.run(make("apart", 200))
            # 200 tokens at 64 a step would be four steps more than the eleven decodes
            assert both.parts["d"].driver.num_steps - steps == 11
            assert both.decode.counts.loads == 1
            assert both.decode.counts.recomputes == 0

    asyncio.run(body())


@pytest.mark.parametrize("quantization", [("int8", "int8"), ("int8", None), (None, "int8")])
def test_what_int8_weights_computed_serves_int8_weights_only(quantization):
    async def body():
        async with pair(quantization=quantization) as both:
            await both.start(make("apart", 50))
            await both.proxy.until(lambda: both.proxy.finished("d", "apart"))
            is_alike = quantization[0] == quantization[1]
            counts = both.decode.counts
            assert (counts.loads, counts.recomputes) == ((1, 0) if is_alike else (0, 1))
            if is_alike:
                expected = await both.whole(make("whole", 50))
                assert both.proxy.tokens("apart") == expected
            await both.at_rest()

    asyncio.run(body())


def test_first_events_say_where_the_time_went():
    async def body():
        async with pair() as both:
            await both.run(make("apart", 200))
            (first,) = both.proxy.events["p"]["apart"]
            assert first.timings.keys() == {"prefill_queue", "prefill"}
            second, *others = both.proxy.events["d"]["apart"]
            names = {"transfer", "transfer_exposed", "decode_queue", "first_step"}
            assert second.timings.keys() == {*names, "kv_bytes", "kv_blocks"}
            assert min(second.timings.values()) >= 0
            assert second.timings["kv_blocks"] == 13  # of 16 tokens each
            block_bytes = both.parts["d"].cache.block_bytes
            assert second.timings["kv_bytes"] == 13 * block_bytes
            assert all(event.timings == {} for event in others)

    asyncio.run(body())


def test_many_at_once_with_shared_prefixes():
    async def body():
        async with pair() as both:
            requests = [make(f"r{i}", 100 + i, seed=i % 3) for i in range(12)]
            expected = [await both.whole(make(f"w{i}", 100 + i, seed=i % 3)) for i in range(12)]
            found = await asyncio.gather(*(both.run(each) for each in requests))
            assert found == expected
            await both.at_rest()

    asyncio.run(body())


def test_a_first_token_that_ends_the_request_leaves_nothing_behind():
    async def body():
        async with pair() as both:
            made = make("one", 40, max_tokens=1)
            await both.start(made)
            await both.proxy.until(lambda: both.proxy.finished("p", "one"))
            both.decode.handle(b"proxy", Abort("one"))
            both.prefill.handle(b"proxy", Abort("one"))
            await both.at_rest()

    asyncio.run(body())


@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.01, 0.03, 0.1])
def test_an_abort_at_any_moment_frees_everything(delay_s):
    async def body():
        async with pair() as both:
            for i in range(4):
                made = make(f"r{i}", 300, seed=i, max_tokens=100)
                await both.start(made)
                await asyncio.sleep(delay_s * (i + 1) / 4)
                both.prefill.handle(b"proxy", Abort(made.request_id))
                both.decode.handle(b"proxy", Abort(made.request_id))
            await both.at_rest()  # well before any lease would end

    asyncio.run(body())


@pytest.mark.parametrize("way", ["the claim fails", "the client leaves"])
def test_nobody_waits_for_blocks_in_vain(way):
    """All of D's blocks are taken: a load waits for them, until there is no reason to."""

    async def body():
        async with pair() as both:
            driver = both.parts["d"].driver
            expected = await both.whole(make("w", 200))
            free = (await driver.call(lambda engine: engine.load())).free_blocks
            taken = await driver.call(lambda engine: engine.reserve(free - 4))
            await both.start(make("r", 200))
            await both.proxy.until(lambda: both.decode.num_waiting() == 1)
            await both.proxy.until(lambda: both.proxy.events["p"].get("r"))
            if way == "the claim fails":
                both.prefill.abort("r")
            else:
                both.decode.handle(b"proxy", Abort("r"))
                both.prefill.handle(b"proxy", Abort("r"))
            await both.proxy.until(lambda: both.decode.num_waiting() == 0)
            assert taken  # still: it left without its turn having come
            driver.post(lambda engine: engine.free(taken))
            if way == "the claim fails":
                await both.proxy.until(lambda: both.proxy.finished("d", "r"))
                assert both.proxy.tokens("r") == expected
            await both.at_rest()

    asyncio.run(body())


def test_a_lost_proxy_frees_everything():
    async def body():
        async with pair() as both:
            for i in range(3):
                await both.start(make(f"r{i}", 300, seed=i, max_tokens=100))
            both.prefill.peer_lost(b"proxy")
            both.decode.peer_lost(b"proxy")
            await both.at_rest()

    asyncio.run(body())


def test_a_released_offer_makes_decode_recompute_the_same_tokens():
    async def body():
        async with pair() as both:
            made = make("r", 200)
            expected = await both.whole(make("w", 200))
            await both.start(made)
            both.prefill.abort("r")
            await both.proxy.until(lambda: both.proxy.finished("d", "r"))
            assert both.proxy.tokens("r") == expected
            await both.at_rest()

    asyncio.run(body())


def test_where_there_is_another_source_a_failed_load_is_told_and_not_computed():
    async def body():
        async with pair() as both:
            made = make("r", 200)
            both.prefill.handle(b"proxy", RunPrefill(made, 1))
            await both.proxy.until(lambda: ("p", "r") in both.proxy.accepted)
            both.prefill.abort("r")
            handle = both.proxy.accepted["p", "r"]
            both.decode.handle(b"proxy", RunDecode(made, handle, 1, has_other_source=True))
            await both.proxy.until(lambda: ("d", "r") in both.proxy.failed)
            assert both.proxy.failed["d", "r"].code.startswith("kv_")
            assert (both.decode.counts.recomputes, both.decode.counts.sent_elsewhere) == (0, 1)
            await both.at_rest()

    asyncio.run(body())


def slow_confirmation(producer, delay_s):
    """`Finish` is heard late; returns when it came first."""
    heard, receive = asyncio.Event(), producer._listener._on_message

    def later(peer, message):
        if isinstance(message, Finish):
            heard.set()
            asyncio.get_running_loop().call_later(delay_s, receive, peer, message)
        else:
            receive(peer, message)

    producer._listener._on_message = later
    return heard


def test_decoding_begins_before_the_producer_has_confirmed_and_says_nothing_until_then():
    async def body():
        async with pair() as both:
            expected = await both.whole(make("whole", 100, seed=4))
            heard = slow_confirmation(both.prefill._producer, 0.5)
            steps = both.parts["d"].driver.num_steps
            await both.start(make("r", 100, seed=5))
            await asyncio.wait_for(heard.wait(), 20)
            while both.parts["d"].driver.num_steps < steps + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            assert "r" not in both.proxy.events["d"]
            await both.proxy.until(lambda: both.proxy.finished("d", "r"))
            assert both.proxy.tokens("r") != expected
            assert both.proxy.tokens("r") == await both.whole(make("again", 100, seed=5))
            assert (both.decode.counts.loads, both.decode.counts.recomputes) == (1, 0)
            await both.at_rest()

    asyncio.run(body())


@pytest.mark.parametrize("max_tokens", [2, 12, 400])
def test_what_the_producer_does_not_confirm_nobody_sees_or_finds(max_tokens):
    """D decodes from garbage until it hears that it was garbage: no token of it goes out, and no
    block of it is left in the prefix cache."""

    async def body():
        async with pair() as both:
            made = make("r", 100, max_tokens=max_tokens)
            heard = slow_confirmation(both.prefill._producer, 0.3)
            protocol = both.prefill._producer.protocol
            epochs = protocol._epochs
            protocol._epochs = lambda blocks: tuple(e + 1 for e in epochs(blocks))
            held = await hold_back_the_copy(both)
            await both.start(made)
            await both.proxy.until(lambda: both.proxy.events["p"].get("r"))
            both.parts["p"].cache.tensor.fill_(3.0)
            held.set()
            await asyncio.wait_for(heard.wait(), 20)
            await both.proxy.until(lambda: both.proxy.finished("d", "r"))
            tokens = both.proxy.tokens("r")
            assert (both.decode.counts.loads, both.decode.counts.recomputes) == (0, 1)
            assert tokens == await both.whole(make("cached", 100, max_tokens=max_tokens))
            await both.at_rest()
        async with pair() as fresh:
            assert tokens == await fresh.whole(make("fresh", 100, max_tokens=max_tokens))

    asyncio.run(body())


async def hold_back_the_copy(both):
    """D reads nothing until the event that is returned is set."""
    go, enter = asyncio.Event(), both.decode._admission.enter

    async def late(*arguments):
        loan = await enter(*arguments)
        await go.wait()
        return loan

    both.decode._admission.enter = late
    return go


def test_a_prompt_that_does_not_fit_is_refused_by_name():
    async def body():
        async with pair() as both:
            both.prefill.handle(b"proxy", RunPrefill(make("long", 600), 1))
            await both.proxy.until(lambda: ("p", "long") in both.proxy.failed)
            assert both.proxy.failed["p", "long"].code == "context_length_exceeded"
            await both.at_rest()

    asyncio.run(body())


def test_each_role_refuses_the_others_work():
    async def body():
        async with pair() as both:
            handle = await both.start(make("r", 20))
            both.prefill.handle(b"proxy", RunDecode(make("x", 20), handle, 1))
            both.decode.handle(b"proxy", RunPrefill(make("y", 20), 1))
            await both.proxy.until(lambda: len(both.proxy.failed) == 2)
            assert {failed.code for failed in both.proxy.failed.values()} == {"invalid_value"}

    asyncio.run(body())
