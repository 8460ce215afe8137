"""Process groups of two that come, break and go: real gloo, real processes, kill -9."""

from __future__ import annotations

import asyncio
import os
import signal

import msgspec
import pytest

from common.errors import PeerLost, TransferError
from kv_transfer import messages as m
from kv_transfer.handles import HandleKey
from kv_transfer.producer_protocol import Described, ProducerProtocol, Send, Serve
from kv_transfer.transport import pair
from kv_transfer.transport.nccl import NcclTransport
from kv_transfer.transport.pair import PairRequest
from tests.kv_transfer.ends import Pool, ends, identity, until
from tests.kv_transfer.test_kv_processes import Consumer, process

LARGE = {"num_blocks": 16, "block_bytes": 4 << 20}  # so that a transfer has a middle
EVERY_BLOCK = list(range(16))
PATIENCE_S = 60.0


async def first_block_has_changed(pool):
    before = pool.blocks[:, :64].copy()
    await until(lambda: (pool.blocks[:, :64] != before).any(), PATIENCE_S)


def test_a_killed_producer_is_lost_and_its_successor_is_read():
    async def body():
        async with Consumer("nccl", **LARGE) as consumer:
            async with process("producer", connector="nccl", **LARGE) as producer:
                handle = await producer.offer("r", 16)
                fetch = consumer.fetch(handle, EVERY_BLOCK, timeout_s=PATIENCE_S)
                landing = asyncio.ensure_future(first_block_has_changed(consumer.pool))
                await producer.extend("r", 0, EVERY_BLOCK, first_token=1)
                await landing
                await producer.kill()
                with pytest.raises(PeerLost):
                    await fetch
            async with process("producer", connector="nccl", **LARGE) as successor:
                handle = await successor.offer("r", 16)
                await successor.extend("r", 0, EVERY_BLOCK, first_token=2)
                assert await consumer.fetch(handle, EVERY_BLOCK, timeout_s=PATIENCE_S) == 2
            source = Pool(seed=1, **LARGE)
            assert (consumer.pool.blocks == source.blocks).all()
            source.close()

    asyncio.run(body())


def test_a_producer_that_stands_still_in_the_middle_blocks_nobody():
    async def body():
        async with (
            Consumer("nccl", silence_s=1.0, **LARGE) as consumer,
            process("producer", connector="nccl", **LARGE) as producer,
        ):
            handle = await producer.offer("r", 16)
            fetch = consumer.fetch(handle, EVERY_BLOCK, timeout_s=PATIENCE_S)
            landing = asyncio.ensure_future(first_block_has_changed(consumer.pool))
            await producer.extend("r", 0, EVERY_BLOCK, first_token=1)
            await landing
            os.kill(producer.pid, signal.SIGSTOP)
            turns = 0
            while not fetch.done():
                await asyncio.sleep(0.01)
                turns += 1
            with pytest.raises(PeerLost):  # for its silence: the thread may still wait
                await fetch
            assert turns > 1  # the event loop has not
            before = consumer.pool.blocks.copy()
            os.kill(producer.pid, signal.SIGCONT)
            await producer.ask(do="snapshot")
            assert (consumer.pool.blocks == before).all()

    asyncio.run(body())


def test_a_killed_consumer_costs_its_pair_and_nothing_else():
    async def body():
        async with ends("nccl", lease_s=1.0, **LARGE) as both:
            async with process("consumer", connector="nccl", **LARGE) as peer:
                handle = both.offer("killed", EVERY_BLOCK)
                peer.tell(handle=msgspec.to_builtins(handle), into=EVERY_BLOCK)
                await until(lambda: both.producer.transport.num_pairs == 1, PATIENCE_S)
                await peer.kill()
            await until(lambda: both.source.num_held == 0, PATIENCE_S)
            await until(lambda: both.producer.transport.num_pairs == 0, PATIENCE_S)
            fetch = both.fetch(both.offer("next", [3, 4]), [0, 1], timeout_s=PATIENCE_S)
            assert await fetch == 7
            both.assert_copied([3, 4], [0, 1])

    asyncio.run(body())


def test_a_cancelled_read_leaves_the_pair_in_order():
    """What is still on its way is received, into memory of the pair, and belongs to nobody."""

    async def body():
        async with ends("nccl", **LARGE) as both:
            for i in range(3):
                fetch = asyncio.ensure_future(
                    both.fetch(both.offer(f"c{i}", EVERY_BLOCK), EVERY_BLOCK)
                )
                await first_block_has_changed(both.target) if i == 0 else await asyncio.sleep(0.01)
                fetch.cancel()
                await asyncio.wait({fetch})
                handle = both.offer(f"r{i}", [1 + i, 5], first_token=i)
                assert await both.fetch(handle, [8, 9], timeout_s=PATIENCE_S) == i
                both.assert_copied([1 + i, 5], [8, 9])
            assert both.producer.transport.num_pairs == 1

    asyncio.run(body())


def test_a_pair_that_was_idle_is_replaced(monkeypatch):
    monkeypatch.setattr(pair, "FRESH_S", 0.0)

    async def body():
        async with ends("nccl") as both:
            for i in range(3):
                handle = both.offer(f"r{i}", [3], first_token=i)
                assert await both.fetch(handle, [i], timeout_s=PATIENCE_S) == i
            await until(lambda: both.producer.transport.num_pairs == 1, PATIENCE_S)

    asyncio.run(body())


def test_a_pair_that_broke_is_replaced_within_the_fetch():
    async def body():
        async with ends("nccl") as both:
            for i in range(3):
                handle = both.offer(f"r{i}", [3, 4], first_token=i)
                assert await both.fetch(handle, [2 * i, 9], timeout_s=PATIENCE_S) == i
                both.assert_copied([3, 4], [2 * i, 9])
                for sender in list(both.producer.transport._senders.values()):
                    sender.close()
                await until(lambda: both.producer.transport.num_pairs == 0, PATIENCE_S)
            snapshot = both.consumer.snapshot()
            assert (snapshot["retries"], snapshot["failures"]) == ({"kv_transfer_failed": 2}, {})

    asyncio.run(body())


def test_only_blocks_of_the_claim_are_sent():
    described = Described("nccl", 16, 4096, b"", False)
    protocol = ProducerProtocol(
        identity("p"),
        described,
        "tcp://127.0.0.1:1",
        10.0,
        lambda blocks: [1] * len(blocks),
        HandleKey(None),
    )
    offer = protocol.leases.offer("r", 2, 0.0)
    protocol.leases.extend(offer, [5, 6], [1, 1], (), (), 3, 0.0)
    protocol.leases.claim(offer.offer_id, "c" * 32, "d", 0.0)
    protocol._readers["c" * 32] = (b"reader", 0)

    def ask(peer, blocks, now=1.0):
        return protocol.received(peer, m.Read("c" * 32, b"x", blocks), now)

    assert ask(b"reader", (6, 5)) == [Serve(b"x", (6, 5))]
    for actions in (ask(b"reader", (5, 7)), ask(b"other", (5,)), ask(b"reader", (5,), now=11.0)):
        refusal, answer = actions
        assert isinstance(refusal, Send) and isinstance(refusal.message, m.Refused)
        assert answer == Serve(b"x", ())


def test_an_answer_without_blocks_fails_the_read_only():
    async def body():
        async with ends("nccl") as both:
            transport = both.producer.transport
            serve = transport.serve
            transport.serve = lambda request, blocks: serve(request, ())
            with pytest.raises(TransferError, match="does not send"):
                await both.fetch(both.offer("r", [3]), [0], timeout_s=PATIENCE_S)
            transport.serve = serve
            handle = both.offer("s", [3], first_token=2)
            assert await both.fetch(handle, [0], timeout_s=PATIENCE_S) == 2
            assert transport.num_pairs == 1

    asyncio.run(body())


def test_what_is_no_request_is_refused():
    pool = Pool()
    transport = NcclTransport(pool.region, "p-1", "127.0.0.1")
    for request in (b"", b"\xc1", msgspec.msgpack.encode(["a", "b", "c", "d", "e"])):
        with pytest.raises(TransferError, match="malformed"):
            transport.serve(request, [])
    transport.close()
    late = PairRequest("name", "d", "127.0.0.1", 1, 1)
    transport.serve(msgspec.msgpack.encode(late), [])
    assert transport.num_pairs == 0
    pool.close()
