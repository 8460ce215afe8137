"""Strangers and liars: what a producer answers to garbage, a consumer to a producer that lies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import time

import msgpack
import msgspec
import numpy as np
import pytest
import zmq
import zmq.asyncio

from common.errors import ConfigError, CorruptBlock, LayoutMismatch, PeerLost, TransferError
from common.rpc import Link
from common.wire import Decoder, Message
from kv_transfer import messages as m
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Gate
from kv_transfer.transport.shm import ShmDescription, ShmTransport
from tests.kv_transfer.ends import FINGERPRINT, Pool, ends, identity, until
from tests.kv_transfer.faults import RogueProducer

CLAIM = "0123456789abcdef" * 2
HANDLE = ["0" * 40, "p", "1", "tcp://127.0.0.1:9", "memory", FINGERPRINT, 16, 1]
OFFER = "0123456789" * 4


def garbage():
    noise = random.Random(5)
    pack = msgpack.packb
    nested = b"\x91" * 5000 + b"\xc0"
    return [
        [b""],
        [],
        [b"", b""],
        [b"\xc1"],
        [pack(5)],
        [pack([])],
        [pack(["Open"])],
        [pack(["Nonsense", 1, 2])],
        [pack({"Open": 1})],
        [pack(["Open", CLAIM, HANDLE, FINGERPRINT, "d", -1])],
        [pack(["Open", CLAIM, HANDLE, FINGERPRINT, "d", 2**40])],
        [pack(["Open", "x", HANDLE, FINGERPRINT, "d", 1])],
        [pack(["Open", CLAIM, None, FINGERPRINT, "d", 1])],
        [pack(["Renew", [CLAIM] * 100_000])],
        [pack(["Renew", "all"])],
        [pack(["Finish", -(2**63)])],
        [pack(["Cancel", [CLAIM]])],
        [b"\xdd\xff\xff\xff\xff" + b"\x00" * 16],  # an array of four thousand million entries
        [b"\xdb\xff\xff\xff\xff" + b"a" * 16],
        [nested],
        [pack(["Finish", CLAIM]), b"second frame"],
        [os.urandom(200_000)],
        *([noise.randbytes(noise.randrange(1, 64))] for _ in range(200)),
    ]


@contextlib.asynccontextmanager
async def stranger(endpoint):
    """A bare socket: may send anything."""
    socket = zmq.asyncio.Context.instance().socket(zmq.DEALER)
    socket.connect(endpoint)
    try:
        yield socket
    finally:
        socket.close(linger=0)


def test_garbage_is_counted_and_an_honest_peer_is_served_meanwhile():
    async def body():
        async with ends() as both, stranger(both.producer.endpoint) as socket:
            handle = both.offer("r", [3, 4], first_token=6)
            frames = garbage()
            for each in frames:
                if each:
                    await socket.send_multipart(each)
            began = time.monotonic()
            assert await both.fetch(handle, [0, 1]) == 6
            assert time.monotonic() - began < 4.5
            await until(lambda: both.producer.num_bad_messages >= len(frames) - 4)
            assert both.producer.num_transfers == 0

    asyncio.run(body())


def test_a_message_above_the_limit_closes_only_its_own_connection():
    async def body():
        async with ends() as both, stranger(both.producer.endpoint) as socket:
            await socket.send(b"x" * (m.MAX_KV_MESSAGE_BYTES + 1))
            assert await both.fetch(both.offer("r", [3], first_token=6), [0]) == 6

    asyncio.run(body())


class Client:
    """Speaks the protocol by hand."""

    def __init__(self, endpoint):
        self.heard: list[Message] = []
        decoder = Decoder(m.ToConsumer, m.MAX_KV_MESSAGE_BYTES)
        self._link = Link(endpoint, decoder, self.heard.append, max_bytes=m.MAX_KV_MESSAGE_BYTES)
        self.send = self._link.send
        self.close = self._link.close

    async def answer(self, message):
        count = len(self.heard)
        self.send(message)
        await until(lambda: len(self.heard) > count)
        return self.heard[count]


def open_for(handle, claim=CLAIM, **changes):
    changed = {name: changes.pop(name) for name in list(changes) if hasattr(handle, name)}
    fingerprint = changed.pop("kv_fingerprint", handle.kv_fingerprint)
    handle = msgspec.structs.replace(handle, **changed)
    return msgspec.structs.replace(m.Open(claim, handle, fingerprint, "d"), **changes)


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"kv_fingerprint": "model=demo,dtype=int8,block_size=16"}, "kv_layout_mismatch", "dtype"),
        ({"kv_fingerprint": "?"}, "kv_layout_mismatch", "kv_fingerprint"),
        ({"kv_fingerprint": FINGERPRINT + ",tp=2"}, "kv_layout_mismatch", "tp (absent, 2)"),
        ({"version": 1}, "kv_layout_mismatch", "version"),
        ({"incarnation": "earlier"}, "kv_peer_lost", "restarted"),
        ({"offer_id": OFFER}, "kv_handle_refused", "forged"),
        ({"connector": "nixl"}, "kv_handle_refused", "altered"),
        ({"num_blocks": 2}, "kv_handle_refused", "altered"),
        ({"signature": "0" * 64}, "kv_handle_refused", "forged"),
    ],
)
def test_a_producer_refuses_whom_it_does_not_fit_and_says_why(changes, code, text):
    async def body():
        async with ends() as both:
            client = Client(both.producer.endpoint)
            handle = both.offer("r", [1])
            refused = await client.answer(open_for(handle, **changes))
            assert isinstance(refused, m.Refused)
            assert refused.code == code and text in refused.message
            assert both.producer.num_transfers == 0 and both.source.num_held == 1
            assert both.producer.snapshot()["refused"] == {code: 1}
            await client.close()

    asyncio.run(body())


@pytest.mark.parametrize("message", [m.Finish(CLAIM), m.Renew((CLAIM,)), m.Cancel(CLAIM)])
def test_a_claim_works_only_for_the_link_that_opened_it(message):
    async def body():
        async with ends() as both:
            owner, thief = Client(both.producer.endpoint), Client(both.producer.endpoint)
            handle = both.offer("r", [1], first_token=3)
            assert isinstance(await owner.answer(open_for(handle)), m.Opened)
            if isinstance(message, m.Cancel):
                thief.send(message)
                await thief.answer(m.Renew(()))
            else:
                assert isinstance(await thief.answer(message), m.Refused)
            assert both.producer.num_transfers == 1
            await until(lambda: len(owner.heard) == 2)
            finished = await owner.answer(m.Finish(CLAIM))
            assert (finished.claim, finished.epochs) == (CLAIM, (1,))
            await owner.close()
            await thief.close()

    asyncio.run(body())


def test_finishing_an_offer_that_still_grows_frees_nothing():
    async def body():
        async with ends() as both:
            client = Client(both.producer.endpoint)
            handle = both.producer.offer("r", 32, 2)
            both.extend("r", 0, [1])
            await client.answer(open_for(handle))
            await until(lambda: len(client.heard) == 2)
            refused = await client.answer(m.Finish(CLAIM))
            assert isinstance(refused, m.Refused) and "before all" in refused.message
            assert both.source.num_held == 1
            await client.close()

    asyncio.run(body())


def test_one_connection_may_not_open_a_claim_twice():
    async def body():
        async with ends() as both:
            client = Client(both.producer.endpoint)
            first, second = both.offer("r", [1]), both.offer("r2", [2])
            assert isinstance(await client.answer(open_for(first)), m.Opened)
            await until(lambda: len(client.heard) == 2)
            assert isinstance(await client.answer(open_for(second)), m.Refused)
            assert both.producer.num_transfers == 1
            await client.close()

    asyncio.run(body())


# --- a producer that lies ------------------------------------------------------------------------


def opened(message, region, **changes):
    return msgspec.structs.replace(m.Opened(message.claim, 10.0, 16, 4096, region), **changes)


def ready(message, **changes):
    return msgspec.structs.replace(
        m.Ready(message.claim, 0, (3, 4), (1, 1), (), True, 5), **changes
    )


def lies(**changes):
    return lambda message, region: [opened(message, region), ready(message, **changes)]


LIES = {
    "block outside its pool": (lies(block_ids=(3, 16)), TransferError, "outside its pool"),
    "far outside": (lies(block_ids=(2**31 - 1, 0)), TransferError, "outside its pool"),
    "not from the start": (lies(first=1), TransferError, "order"),
    "too few epochs": (lies(epochs=(1,)), TransferError, "malformed"),
    "too few hashes": (lies(hashes=("0" * 16,)), TransferError, "malformed"),
    "too few checksums": (lies(checksums=(1,)), TransferError, "malformed"),
    "wrong checksums": (lies(checksums=(1, 2)), CorruptBlock, "damaged"),
    "more than offered": (lies(block_ids=(1, 2, 3), epochs=(1, 1, 1)), TransferError, "malformed"),
    "ends early": (lies(block_ids=(1,), epochs=(1,)), TransferError, "early"),
    "no first token": (lies(first_token=None), TransferError, "early"),
    "goes on after the end": (
        lambda o, region: [opened(o, region), ready(o), ready(o, first=2, block_ids=(), epochs=())],
        TransferError,
        "order",
    ),
    "before opened": (lambda o, _: [ready(o)], TransferError, "order"),
    "other block size": (
        lambda o, region: [opened(o, region, block_bytes=8192)],
        LayoutMismatch,
        "block_bytes",
    ),
    "larger pool than memory": (
        lambda o, region: [opened(o, region, num_blocks=17), ready(o)],
        LayoutMismatch,
        "smaller",
    ),
    "nobody's memory": (lambda o, _: [opened(o, b"?" * 16), ready(o)], LayoutMismatch, "process"),
    "unknown error": (
        lambda o, _: [m.Refused(o.claim, "model_not_found", "why not")],
        TransferError,
        "why not",
    ),
}


@pytest.mark.parametrize("connector", ["memory", "shm"])
@pytest.mark.parametrize("lie", LIES)
def test_a_consumer_believes_no_lie(lie, connector):
    """The rogue has real memory: only what it says is wrong."""
    answers, error, text = LIES[lie]
    if (lie, connector) == ("nobody's memory", "shm"):
        error, text = TransferError, "malformed"

    async def body():
        async with ends(connector) as both:
            memory = make_transport(KVTransferConfig(connector), both.source.region, identity("p"))
            region = memory.describe()
            rogue = RogueProducer(Open=lambda o: answers(o, region), Renew=lambda _: [m.Renewed()])
            before = both.target.blocks.copy()
            handle = both.producer.offer("r", 32, 2)
            handle = msgspec.structs.replace(handle, side_channel=rogue.endpoint)
            with pytest.raises(error, match=text):
                await both.fetch(handle, [0, 1], timeout_s=3)
            if error is not CorruptBlock:
                assert (both.target.blocks == before).all()
            await until(lambda: any(isinstance(each, m.Cancel) for each in rogue.heard))
            await rogue.close()

    asyncio.run(body())


# --- memory that is not what it is said to be ----------------------------------------------------


def described(pool, **changes):
    real = msgspec.msgpack.decode(ShmTransport(pool.region).describe(), type=ShmDescription)
    return msgspec.msgpack.encode(msgspec.structs.replace(real, **changes))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"host": "elsewhere"}, LayoutMismatch),
        ({"size_bytes": 4096}, LayoutMismatch),
        ({"size_bytes": 2**62}, PeerLost),
        ({"inode": 1}, PeerLost),
        ({"pid": 2**31 - 1}, PeerLost),
        ({"pid": -1}, PeerLost),
        ({"fd": 10**6}, PeerLost),
        ({"fd": 0}, TransferError),
    ],
)
def test_shm_maps_only_the_memfd_that_was_described(changes, error):
    pool = Pool()
    with pytest.raises(error):
        ShmTransport(pool.region).connect(described(pool, **changes), 16)
    pool.close()


def test_shm_maps_no_memory_that_could_shrink_under_it():
    pool = Pool()
    fd = os.memfd_create("unsealed")
    os.ftruncate(fd, pool.region.size_bytes)
    status = os.fstat(fd)
    changes = {"fd": fd, "device": status.st_dev, "inode": status.st_ino}
    with pytest.raises(TransferError, match="sealed"):
        ShmTransport(pool.region).connect(described(pool, **changes), 16)
    os.close(fd)
    pool.close()


NOISE = random.Random(7).randbytes(64)
DEEP = b"\x97" + b"\xa0\x01\x01\x01\x01\x01" + b"\x91" * 50_000 + b"\x01"


@pytest.mark.parametrize("description", [b"", b"\xc1", b"\x91\x01", NOISE, DEEP])
def test_shm_survives_a_malformed_description(description):
    pool = Pool()
    with pytest.raises(TransferError):
        ShmTransport(pool.region).connect(description, 16)
    pool.close()


def test_shm_reads_from_a_producer_that_has_let_go():
    """Its file is closed, its blocks live on in the mapping."""
    pool, target = Pool(seed=1), Pool(seed=2)
    peer = ShmTransport(target.region).connect(ShmTransport(pool.region).describe(), 16)
    pool.close()
    peer.read([3], [0], [], Gate())
    assert np.array_equal(pool.blocks[3], target.blocks[0])
    peer.close()
    target.close()


def test_shm_needs_a_memfd():
    region = KVRegion(address=1 << 20, num_blocks=1, block_bytes=4096)
    with pytest.raises(ConfigError, match="memfd"):
        ShmTransport(region).describe()
