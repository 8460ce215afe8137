"""Several connectors in order: which one reads, and what happens when it cannot."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

from common.errors import ConfigError, LayoutMismatch, TransferError
from kv_transfer.config import KVTransferConfig
from kv_transfer.transport.base import Peer, Transport
from kv_transfer.transport.memory import MemoryTransport
from kv_transfer.transport.multi import MultiTransport
from kv_transfer.transport.shared_storage import SharedStorageTransport
from tests.kv_transfer.ends import FINGERPRINT, Pool, ends, until


class Broken(Transport):
    """Cannot connect, or fails in the middle of a read, after writing nonsense."""

    name = "broken"

    def __init__(self, region, *, connects):
        self._region = region
        self._connects = connects
        self.num_tried = 0

    def describe(self):
        return b"broken"

    def connect(self, description, num_blocks):
        assert description == b"broken"
        if not self._connects:
            self.num_tried += 1
            raise TransferError("no way there")
        return BrokenPeer(self, self._region.blocks())

    def close(self):
        pass


class BrokenPeer(Peer):
    def __init__(self, transport, target):
        self._transport = transport
        self._target = target

    def read(self, remote, local, hashes, gate):
        self._transport.num_tried += 1
        with gate.write():
            self._target[local[0]] = 0
        gate.landed(1)
        raise TransferError("the wire broke")

    def close(self):
        pass


def parse(*connectors):
    raw = {
        "kv_connector": "MultiConnector",
        "kv_connector_extra_config": {"connectors": connectors},
    }
    return KVTransferConfig.parse(json.dumps(raw))


def test_the_first_that_both_have_reads():
    async def body():
        both_have = (KVTransferConfig("shm"), KVTransferConfig("memory"))
        async with ends("multi", connectors=both_have) as both:
            assert await both.fetch(both.offer("r", [3, 4]), [0, 1]) == 7
            both.assert_copied([3, 4], [0, 1])
            assert both.consumer.transport.counters() == {
                "kv_fallback_shm": 0,
                "kv_fallback_memory": 0,
            }

    asyncio.run(body())


@pytest.mark.parametrize("connects", [True, False])
@pytest.mark.parametrize("checksums", [True, False])
def test_a_failure_falls_through_and_is_told_once(connects, checksums, caplog):
    made = []

    def wrap(transport):
        transport.checksums = checksums
        made.append(Broken(transport.region, connects=connects))
        return MultiTransport([made[-1], transport])

    async def body():
        async with ends("memory", wrap=wrap) as both:
            for i in range(3):
                handle = both.offer(f"r{i}", [3, 4, 9], first_token=i)
                assert await both.fetch(handle, [0, 1, 2]) == i
                both.assert_copied([3, 4, 9], [0, 1, 2])
            assert made[1].num_tried == 1  # then it was left alone
            assert both.consumer.transport.counters()["kv_fallback_broken"] == 1
            assert both.consumer.snapshot()["failures"] == {}

    with caplog.at_level(logging.WARNING, "kv_transfer"):
        asyncio.run(body())
    (record,) = caplog.records
    assert "connector broken failed, trying the next" in record.message


def test_when_all_fail_the_last_reason_is_given():
    async def body():
        def wrap(transport):
            return MultiTransport([Broken(transport.region, connects=False)])

        async with ends("memory", wrap=wrap) as both:
            with pytest.raises(TransferError, match="no way there"):
                await both.fetch(both.offer("r", [3]), [0])

    asyncio.run(body())


def test_nothing_in_common_is_refused_by_name():
    pool = Pool()
    ours = MultiTransport([MemoryTransport(pool.region)])
    theirs = MultiTransport([Broken(pool.region, connects=True)])
    with pytest.raises(LayoutMismatch, match="broken there, memory here"):
        ours.connect(theirs.describe(), 16)
    with pytest.raises(TransferError, match="malformed"):
        ours.connect(b"\xc1", 16)
    pool.close()


def test_the_settings_are_those_of_each():
    config = parse(
        {"kv_connector": "shm"},
        {"kv_connector": "NixlConnector", "kv_connector_extra_config": {"backends": ["POSIX"]}},
    )
    assert [child.connector for child in config.connectors] == ["shm", "nixl"]
    assert config.connectors[1].backends == ("POSIX",)
    assert config.of("nixl") is config.connectors[1] and config.of("shared_storage") is None


@pytest.mark.parametrize(
    ("connectors", "named"),
    [
        ([], "connectors"),
        (["shm"], "JSON object"),
        ([{"kv_connector": "shm"}, {"kv_connector": "shm"}], "different"),
        ([{"kv_connector": "shared_storage"}], "shared_storage"),
        ([{"kv_connector": "shm", "kv_connector_extra_config": {"kv_lease_duration": 3}}], "lease"),
        ([{"kv_connector": "shm", "kv_connector_extra_config": {"backends": []}}], "backends"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(connectors, named):
    with pytest.raises(ConfigError, match=named):
        parse(*connectors)


class Slow(MemoryTransport):
    """Blocks are readable by its way only once they were published, which takes until `go`."""

    name = "slow"
    publishes = True
    uses_hashes = True

    def __init__(self, region):
        super().__init__(region)
        self.go = threading.Event()
        self.written = []

    def publish(self, block_ids, hashes):
        assert self.go.wait(30)
        self.written += block_ids


def test_blocks_are_offered_before_a_fallback_has_written_them():
    """What is being written stays held, and goes back when it is written: each hold once."""
    made = []

    def wrap(transport):
        made.append(Slow(transport.region))
        return MultiTransport([transport, made[-1]])

    async def body():
        async with ends("memory", wrap=wrap) as both:
            assert await both.fetch(both.offer("r", [3, 4]), [0, 1]) == 7
            assert await both.fetch(both.offer("s", [3, 5]), [0, 1]) == 7  # 3 is held twice
            assert await both.fetch(both.offer("t", [6, 7]), [0, 1]) == 7  # over the bound
            await until(lambda: both.producer.num_leases == 0)
            assert both.source.num_held == both.producer.num_blocks_held == 4
            assert both.producer.snapshot()["blocks_not_written"] == 2
            made[0].go.set()
            await until(lambda: both.source.num_held == 0)
            assert both.producer.num_blocks_held == 0
            assert made[0].written == [3, 4, 3, 5]

    asyncio.run(body())


def test_whoever_reads_by_the_fallback_waits_for_what_is_being_written(tmp_path):
    def wrap(transport):
        stored = SharedStorageTransport(transport.region, str(tmp_path / "kv"), FINGERPRINT)
        return MultiTransport([Broken(transport.region, connects=False), stored])

    async def body():
        async with ends("memory", wrap=wrap) as both:
            for i in range(3):
                blocks = [4 * i, 4 * i + 1, 4 * i + 2]
                assert await both.fetch(both.offer(f"r{i}", blocks), [0, 1, 2]) == 7
                both.assert_copied(blocks, [0, 1, 2])
            assert both.consumer.snapshot()["failures"] == {}
            await until(lambda: both.source.num_held == 0)

    asyncio.run(body())
