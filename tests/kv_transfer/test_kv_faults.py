"""What a fetch promises when something breaks: an error in time, no late byte, every block back."""

from __future__ import annotations

import asyncio
import time

import msgspec
import pytest

from common.errors import (
    BadRequest,
    CorruptBlock,
    HandleRefused,
    LayoutMismatch,
    LeaseExpired,
    PeerLost,
    TransferError,
)
from kv_transfer import claim, consumer
from kv_transfer.consumer import KVConsumer
from kv_transfer.transport import nixl
from kv_transfer.transport.memory import MemoryTransport
from tests.kv_transfer.ends import NEEDS_NIXL, Pool, ends, identity, until
from tests.kv_transfer.faults import FlippingTransport, Relay, Stall


def test_release_during_a_fetch_fails_it_and_frees_at_once():
    async def body():
        async with ends() as both:
            handle = both.producer.offer("r", 64, 4)
            fetch = asyncio.ensure_future(both.fetch(handle, [0, 1, 2, 3]))
            both.extend("r", 0, [5, 6])
            await until(lambda: both.consumer.snapshot()["bytes_read"])
            both.producer.release("r")
            assert both.source.num_held == 0
            with pytest.raises(TransferError, match="took its offer back"):
                await fetch

    asyncio.run(body())


def test_blocks_that_fill_after_the_release_go_straight_back():
    async def body():
        async with ends() as both:
            both.producer.offer("r", 64, 4)
            both.extend("r", 0, [5])
            both.producer.release("r")
            both.extend("r", 1, [6, 7])
            both.extend("r", 3, [8], first_token=1)
            assert both.source.num_held == 0

    asyncio.run(body())


def test_blocks_of_an_earlier_attempt_end_the_offer_they_do_not_fit():
    async def body():
        async with ends() as both:
            handle = both.producer.offer("r", 64, 4)
            both.extend("r", 2, [6])
            assert both.source.num_held == 0
            with pytest.raises(TransferError):
                await both.fetch(handle, [0, 1, 2, 3])

    asyncio.run(body())


def test_one_live_offer_per_request():
    async def body():
        async with ends() as both:
            both.producer.offer("r", 16, 1)
            with pytest.raises(BadRequest):
                both.producer.offer("r", 16, 1)
            both.producer.release("r")
            both.producer.offer("r", 16, 1)

    asyncio.run(body())


def test_a_lease_that_expires_during_the_copy_is_never_a_success():
    """The wire stalls, the producer gives the blocks to somebody else, the wire comes back."""

    async def body():
        stall = Stall()
        async with ends(lease_s=0.3, wrap=stall) as both, Relay(both.producer.endpoint) as relay:
            handle = both.offer("r", [5, 6])
            handle = both.via(handle, relay.endpoint)
            fetch = asyncio.ensure_future(both.fetch(handle, [0, 1]))
            await until(stall.reached.is_set)
            relay.hold("up", "down")
            await until(lambda: both.source.num_held == 0)
            both.source.new_owner(5)
            stall.go.set()
            relay.resume()
            with pytest.raises(LeaseExpired):
                await fetch
            assert both.producer.snapshot()["expired"] == 1

    asyncio.run(body())


def test_a_block_that_changed_hands_is_found_after_the_copy():
    async def body():
        async with ends() as both:
            handle = both.producer.offer("r", 32, 2)
            fetch = asyncio.ensure_future(both.fetch(handle, [0, 1]))
            both.extend("r", 0, [5])
            await until(lambda: both.consumer.snapshot()["bytes_read"])
            both.source.new_owner(5)  # held, yet given away: an engine's mistake
            both.extend("r", 1, [6], first_token=1)
            with pytest.raises(CorruptBlock):
                await fetch

    asyncio.run(body())


@pytest.mark.parametrize(
    ("directions", "error"),
    [(("up",), LeaseExpired), (("down",), PeerLost), (("up", "down"), PeerLost)],
)
def test_a_wire_that_falls_silent_ends_the_fetch_on_both_sides_in_time(directions, error):
    async def body():
        async with (
            ends(lease_s=0.5, silence_s=0.6) as both,
            Relay(both.producer.endpoint) as relay,
        ):
            handle = both.producer.offer("r", 32, 2)
            handle = both.via(handle, relay.endpoint)
            fetch = asyncio.ensure_future(both.fetch(handle, [0, 1]))
            both.extend("r", 0, [5])
            await until(lambda: both.consumer.snapshot()["bytes_read"])
            relay.hold(*directions)
            began = time.monotonic()
            with pytest.raises(error):
                await fetch
            assert time.monotonic() - began < 5.2
            relay.hold("up")
            await until(lambda: both.source.num_held == 0, timeout_s=1.5)

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["shm", "nccl"])
def test_a_connection_that_is_cut_costs_another_one(connector):
    async def body():
        async with ends(connector) as both, Relay(both.producer.endpoint) as relay:
            handle = both.via(both.producer.offer("r", 64, 4), relay.endpoint)
            fetch = asyncio.ensure_future(both.fetch(handle, [4, 5, 6, 7], timeout_s=30.0))
            for first in (0, 1):
                both.extend("r", first, [first])
                await until(lambda n=first: both.consumer.counters.bytes_read > n * 4096, 20)
                relay.cut()
            both.extend("r", 2, [2, 3], first_token=9)
            assert await fetch == 9
            both.assert_copied([0, 1, 2, 3], [4, 5, 6, 7])
            assert both.consumer.counters.retries == {"kv_peer_lost": 2}
            await until(lambda: both.source.num_held == 0)

    asyncio.run(body())


def test_a_connection_that_is_cut_again_and_again_is_a_lost_peer():
    async def body():
        async with ends() as both, Relay(both.producer.endpoint) as relay:
            handle = both.via(both.producer.offer("r", 64, 4), relay.endpoint)
            fetch = asyncio.ensure_future(both.fetch(handle, [4, 5, 6, 7], timeout_s=30.0))
            while not fetch.done():
                relay.cut()
                await asyncio.sleep(0.05)
            with pytest.raises(PeerLost):
                await fetch
            both.producer.release("r")

    asyncio.run(body())


def test_nobody_at_the_address_is_a_lost_peer():
    async def body():
        async with ends(silence_s=0.4) as both:
            handle = msgspec.structs.replace(both.offer("r", [1]), side_channel="tcp://127.0.0.1:9")
            with pytest.raises(PeerLost):
                await both.fetch(handle, [0])

    asyncio.run(body())


def test_a_short_stall_is_no_death():
    async def body():
        async with ends(silence_s=1.2) as both, Relay(both.producer.endpoint) as relay:
            handle = both.producer.offer("r", 16, 1)
            handle = both.via(handle, relay.endpoint)
            fetch = asyncio.ensure_future(both.fetch(handle, [0]))
            await until(lambda: both.producer.num_transfers == 1)
            relay.hold("up", "down")
            await asyncio.sleep(0.6)
            relay.resume()
            both.extend("r", 0, [5], first_token=4)
            assert await fetch == 4

    asyncio.run(body())


def test_the_deadline_ends_a_fetch_whose_prefill_never_ends():
    async def body():
        async with ends() as both:
            handle = both.producer.offer("r", 32, 2)
            both.extend("r", 0, [5])
            with pytest.raises(TransferError, match="deadline"):
                await both.fetch(handle, [0, 1], timeout_s=0.3)
            await until(lambda: both.source.num_held == 0)

    asyncio.run(body())


def test_cancelling_a_fetch_tells_the_producer_and_lets_no_byte_land_later():
    async def body():
        stall = Stall()
        async with ends("shm", wrap=stall) as both:
            before = both.target.blocks.copy()
            fetch = asyncio.ensure_future(both.fetch(both.offer("r", [5, 6]), [0, 1]))
            await until(stall.reached.is_set)
            asyncio.get_running_loop().call_later(0.1, stall.go.set)
            fetch.cancel()
            with pytest.raises(asyncio.CancelledError):
                await fetch
            await asyncio.sleep(0.1)
            assert (both.target.blocks == before).all()
            await until(lambda: both.source.num_held == 0)
            assert both.consumer.snapshot()["cancelled"] == 1

    asyncio.run(body())


def test_a_copy_that_cannot_be_stopped_quarantines_its_blocks(monkeypatch):
    monkeypatch.setattr(claim, "SETTLE_S", 0.2)

    async def body():
        stall = Stall(through_gate=False)
        landed: list[int] = []
        async with ends(wrap=stall, on_landed=landed.extend) as both:
            fetch = asyncio.ensure_future(both.fetch(both.offer("r", [5, 6]), [0, 1]))
            await until(stall.reached.is_set)
            fetch.cancel()
            with pytest.raises(TransferError) as caught:
                await fetch
            assert caught.value.quarantine == (0, 1)
            assert both.consumer.snapshot()["blocks_quarantined"] == 2
            assert landed == []
            stall.go.set()
            await until(lambda: landed == [0, 1])
            assert both.consumer.snapshot()["blocks_quarantined"] == 0

    asyncio.run(body())


def test_a_copy_that_ends_soon_after_its_cancellation_needs_no_quarantine():
    async def body():
        stall = Stall(through_gate=False)
        async with ends(wrap=stall) as both:
            fetch = asyncio.ensure_future(both.fetch(both.offer("r", [5]), [0]))
            await until(stall.reached.is_set)
            fetch.cancel()
            await asyncio.sleep(0.05)
            assert not fetch.done()  # bytes may still land
            stall.go.set()
            with pytest.raises(asyncio.CancelledError):
                await fetch

    asyncio.run(body())


def test_of_two_consumers_one_gets_the_offer():
    async def body():
        async with ends() as both:
            pool = Pool(seed=3)
            other = KVConsumer(identity("d2"), pool.region, MemoryTransport(pool.region))
            handle = both.producer.offer("r", 16, 1)
            fetches = [
                asyncio.ensure_future(each.fetch(handle, [0], 0, time.monotonic() + 5))
                for each in (both.consumer, other)
            ]
            await until(lambda: any(fetch.done() for fetch in fetches))
            both.extend("r", 0, [5], first_token=4)
            outcomes = await asyncio.gather(*fetches, return_exceptions=True)
            assert 4 in outcomes
            (error,) = [outcome for outcome in outcomes if outcome != 4]
            assert isinstance(error, HandleRefused) and "another consumer" in error.message
            await other.close()
            pool.close()

    asyncio.run(body())


def test_a_handle_of_an_earlier_incarnation_is_refused():
    async def body():
        async with ends() as both:
            handle = msgspec.structs.replace(both.offer("r", [1]), incarnation="before")
            with pytest.raises(PeerLost, match="restarted"):
                await both.fetch(handle, [0])
            assert both.source.num_held == 1  # the live offer is as it was

    asyncio.run(body())


def test_a_guessed_offer_id_is_refused():
    async def body():
        async with ends() as both:
            handle = both.offer("r", [1])
            guess = handle.offer_id[:-1] + ("0" if handle.offer_id[-1] != "0" else "1")
            with pytest.raises(HandleRefused, match="forged"):
                await both.fetch(msgspec.structs.replace(handle, offer_id=guess), [0])
            assert both.producer.snapshot()["refused"] == {"kv_handle_refused": 1}
            assert both.source.num_held == 1

    asyncio.run(body())


def test_another_layout_is_refused_by_name_before_anything_moves():
    async def body():
        async with ends(fingerprint="model=demo,dtype=bfloat16,block_size=16") as both:
            before = both.target.blocks.copy()
            with pytest.raises(LayoutMismatch, match="dtype"):
                await both.fetch(both.offer("r", [1]), [0])
            assert (both.target.blocks == before).all()
            assert both.producer.num_transfers == 0

    asyncio.run(body())


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"connector": "nixl"}, LayoutMismatch),
        ({"kv_fingerprint": "model=other"}, LayoutMismatch),
        ({"side_channel": "ipc:///tmp/x"}, TransferError),
        ({"side_channel": "tcp://not an address"}, TransferError),
        ({"num_blocks": 3}, TransferError),
        ({"num_blocks": -1}, TransferError),
        ({"offer_id": "x" * 1000}, HandleRefused),
        ({"content": "x"}, HandleRefused),
        ({"signature": ""}, HandleRefused),
        ({"incarnation": "x" * 5000}, PeerLost),
    ],
)
def test_a_handle_that_was_tampered_with_fails_soon(change, error):
    async def body():
        async with ends() as both:
            handle = msgspec.structs.replace(both.offer("r", [1]), **change)
            began = time.monotonic()
            with pytest.raises(error):
                await both.fetch(handle, [0])
            assert time.monotonic() - began < 6

    asyncio.run(body())


@pytest.mark.parametrize("into", [[16], [-1], [1, 1]])
def test_local_blocks_outside_the_pool_are_refused(into):
    async def body():
        async with ends() as both:
            before = both.target.blocks.copy()
            with pytest.raises(ValueError, match="local blocks"):
                await both.fetch(both.offer("r", list(range(len(into)))), into)
            assert (both.target.blocks == before).all()

    asyncio.run(body())


def test_closing_the_producer_fails_fetches_and_frees():
    async def body():
        async with ends() as both:
            fetch = asyncio.ensure_future(both.fetch(both.producer.offer("r", 32, 2), [0, 1]))
            both.extend("r", 0, [5])
            await until(lambda: both.consumer.snapshot()["bytes_read"])
            await both.producer.close()
            assert both.source.num_held == 0
            with pytest.raises(TransferError):
                await fetch

    asyncio.run(body())


def test_closing_the_consumer_fails_its_fetches():
    async def body():
        async with ends() as both:
            fetch = asyncio.ensure_future(both.fetch(both.producer.offer("r", 32, 2), [0, 1]))
            await until(lambda: both.producer.num_transfers == 1)
            await both.consumer.close()
            with pytest.raises(TransferError):
                await fetch
            await until(lambda: both.producer.num_transfers == 0)

    asyncio.run(body())


def test_releasing_while_a_block_is_being_stored_frees_it_only_afterwards(tmp_path):
    async def body():
        stall = Stall()
        async with ends("shared_storage", wrap=stall, storage_dir=str(tmp_path)) as both:
            both.producer.offer("r", 16, 1)
            both.extend("r", 0, [5], first_token=1)
            await until(stall.reached.is_set)
            both.producer.release("r")
            await asyncio.sleep(0.05)
            assert both.source.num_held == 1  # a thread is reading it
            handle = both.producer.offer("r", 16, 1)  # the next attempt of the same request
            stall.go.set()
            await until(lambda: both.source.num_held == 0)
            both.extend("r", 0, [6], first_token=2)
            assert await both.fetch(handle, [0]) == 2
            both.assert_copied([6], [0])

    asyncio.run(body())


def test_closing_the_producer_waits_for_the_block_being_stored(tmp_path):
    async def body():
        stall = Stall()
        async with ends("shared_storage", wrap=stall, storage_dir=str(tmp_path)) as both:
            both.producer.offer("r", 32, 2)
            both.extend("r", 0, [5])
            both.extend("r", 1, [6], first_token=1)
            await until(stall.reached.is_set)
            closing = asyncio.ensure_future(both.producer.close())
            await asyncio.sleep(0.1)
            assert both.source.num_held == 2 and not closing.done()
            stall.go.set()
            await closing
            assert both.source.num_held == 0

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["shm", pytest.param("nixl", marks=NEEDS_NIXL)])
def test_a_producer_that_is_not_read_any_more_is_let_go(connector, monkeypatch):
    monkeypatch.setattr(consumer, "IDLE_S", 0.2)

    async def body():
        async with ends(connector) as both:
            for i in range(3):
                await both.fetch(both.offer(f"r{i}", [1]), [2])
                assert both.consumer.snapshot()["peers"] == 1
            await asyncio.sleep(0.1)
            assert both.consumer.snapshot()["peers"] == 1
            await until(lambda: both.consumer.snapshot()["peers"] == 0)
            assert await both.fetch(both.offer("again", [1], first_token=3), [2]) == 3

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["shm", pytest.param("nixl", marks=NEEDS_NIXL)])
def test_waiting_costs_no_processor_time(connector):
    async def body():
        async with ends(connector) as both:
            fetch = asyncio.ensure_future(both.fetch(both.producer.offer("r", 32, 2), [0, 1]))
            both.extend("r", 0, [5])
            await until(lambda: both.consumer.snapshot()["bytes_read"])
            before = time.process_time()
            await asyncio.sleep(1)
            assert time.process_time() - before < 0.2
            both.extend("r", 1, [6], first_token=1)
            await fetch
            await asyncio.sleep(0.1)
            before = time.process_time()
            await asyncio.sleep(1)
            assert time.process_time() - before < 0.05

    asyncio.run(body())


@NEEDS_NIXL
@pytest.mark.parametrize("delay_s", [0, 0.002, 0.005, 0.02])
def test_a_read_that_is_stopped_by_a_release_comes_to_rest(delay_s):
    """The first read connects, and connecting needs the producer, which has no claim any more."""

    async def body():
        async with ends("nixl") as both:
            fetch = asyncio.ensure_future(both.fetch(both.producer.offer("r", 32, 2), [0, 1]))
            both.extend("r", 0, [5])
            await until(lambda: both.producer.num_transfers == 1)
            await asyncio.sleep(delay_s)
            both.producer.release("r")
            with pytest.raises(TransferError) as caught:
                await fetch
            assert caught.value.quarantine == ()

    asyncio.run(body())


def test_a_flipped_bit_is_found_where_checksums_are_on():
    async def body():
        async with ends(wrap=lambda memory: FlippingTransport(memory.region)) as both:
            with pytest.raises(CorruptBlock, match="damaged"):
                await both.fetch(both.offer("r", [5, 6, 7]), [0, 1, 2])
            assert both.consumer.snapshot()["checksum_mismatches"] == 1 + claim.MAX_RETRIES
            assert both.consumer.snapshot()["retries"] == {"kv_corrupt_block": claim.MAX_RETRIES}
            assert both.consumer.snapshot()["fetched"] == 0
            await until(lambda: both.source.num_held == 0)

    asyncio.run(body())


@pytest.mark.parametrize("connector", ["memory", "shm"])
def test_checksums_let_sound_blocks_pass(connector):
    async def body():
        async with ends(connector, checksum=True) as both:
            handle = both.producer.offer("r", 48, 3)
            fetch = asyncio.ensure_future(both.fetch(handle, [1, 0], skip_blocks=1))
            both.extend("r", 0, [5, 6])
            both.extend("r", 2, [7], first_token=4)
            assert await fetch == 4
            both.assert_copied([6, 7], [1, 0])

    asyncio.run(body())


@NEEDS_NIXL
@pytest.mark.parametrize(
    ("checksum", "is_far", "compares"),
    [(None, False, False), (None, True, True), (True, False, True)],
)
def test_nixl_compares_what_comes_from_another_machine(checksum, is_far, compares, monkeypatch):
    async def body():
        async with ends("nixl", checksum=checksum) as both:
            if is_far:  # the producer has described itself
                monkeypatch.setattr(nixl, "boot_id", lambda: "another machine")
            assert await both.fetch(both.offer("r", [3]), [0], timeout_s=30.0) == 7
            both.assert_copied([3], [0])
            (link,) = both.consumer._links.values()
            assert link._reader.result()._peer.compares is compares

    asyncio.run(body())
