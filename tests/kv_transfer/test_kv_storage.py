"""Blocks in files: whatever is wrong with a file, a fetch fails and says so."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import time

import numpy as np
import pytest

from common.errors import ConfigError, CorruptBlock, TransferError
from kv_transfer.transport.base import Gate, Stopped
from kv_transfer.transport.block_file import HEADER_BYTES, BlockMissing
from kv_transfer.transport.shared_storage import STALE_S, SharedStorageTransport
from tests.kv_transfer.ends import Pool, ends

HASH = "ab" + "0123456789abcdef" * 3


class Store:
    """A pool and its directory; `hash -> block` without side channel."""

    def __init__(self, directory, fingerprint="model=demo", seed=1):
        self.pool = Pool(seed=seed)
        self.transport = SharedStorageTransport(self.pool.region, str(directory), fingerprint)
        self.directory = directory

    def put(self, block, block_hash=HASH):
        self.transport.publish([block], [block_hash])

    def get(self, block, block_hash=HASH):
        self.transport.connect(b"", 16).read([0], [block], [block_hash], Gate())

    def path(self, block_hash=HASH):
        (path,) = self.directory.rglob(block_hash)
        return path


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "kv")
    yield made
    made.pool.close()


@pytest.fixture
def reader(store):
    made = Store(store.directory, seed=2)
    yield made
    made.pool.close()


def test_a_block_comes_back_as_it_was(store, reader):
    store.put(3)
    reader.get(7)
    assert np.array_equal(store.pool.blocks[3], reader.pool.blocks[7])


def test_files_and_directories_are_private_and_no_temporary_one_stays(store):
    store.put(3)
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.directory.rglob("*")}
    assert modes.pop(HASH) == 0o600
    assert set(modes.values()) == {0o700} and len(modes) == 2
    assert store.directory.stat().st_mode & 0o777 == 0o700


def flip(offset):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[offset] ^= 0x10
        path.write_bytes(data)

    return damage


def truncate(size):
    return lambda path: os.truncate(path, size)


def make_fifo(path):
    path.unlink()
    os.mkfifo(path)


def make_directory(path):
    path.unlink()
    path.mkdir()


def make_symlink(path):
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def make_hole(path):
    size = path.stat().st_size
    path.unlink()
    path.touch()
    os.truncate(path, size)


DAMAGES = {
    "flipped bit in the block": (flip(HEADER_BYTES + 1000), CorruptBlock),
    "flipped last bit": (flip(-1), CorruptBlock),
    "flipped magic": (flip(0), CorruptBlock),
    "other version": (flip(8), CorruptBlock),
    "flipped checksum": (flip(16), CorruptBlock),
    "flipped size": (flip(24), CorruptBlock),
    "flipped hash": (flip(40), CorruptBlock),
    "flipped layout": (flip(100), CorruptBlock),
    "flipped padding": (flip(2000), CorruptBlock),
    "empty": (truncate(0), CorruptBlock),
    "header only": (truncate(HEADER_BYTES), CorruptBlock),
    "one byte short": (truncate(HEADER_BYTES + 4095), CorruptBlock),
    "one byte long": (truncate(HEADER_BYTES + 4097), CorruptBlock),
    "nothing but zeros": (make_hole, CorruptBlock),
    "gone": (lambda path: path.unlink(), BlockMissing),
    "a FIFO": (make_fifo, CorruptBlock),
    "a directory": (make_directory, TransferError),
    "a symlink": (make_symlink, TransferError),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_file_that_is_not_right_is_never_used(store, reader, what):
    damage, error = DAMAGES[what]
    store.put(3)
    damage(store.path())
    before = reader.pool.blocks.copy()
    with pytest.raises(error):
        reader.get(7)
    assert np.array_equal(reader.pool.blocks, before)


@pytest.mark.parametrize("what", [what for what in DAMAGES if "directory" not in what])
def test_storing_again_repairs_it(store, reader, what):
    store.put(3)
    DAMAGES[what][0](store.path())
    store.put(3)
    reader.get(7)
    assert np.array_equal(store.pool.blocks[3], reader.pool.blocks[7])


def test_a_valid_file_is_not_written_again(store):
    store.put(3)
    before = store.path().stat()
    store.put(3)
    assert store.path().stat().st_ino == before.st_ino


def test_swapped_files_are_noticed(store, reader):
    other = "cd" + HASH[2:]
    store.put(3)
    store.put(4, other)
    swap = store.directory / "swap"
    first, second = store.path(), store.path(other)
    first.rename(swap)
    second.rename(first)
    swap.rename(second)
    for block_hash in (HASH, other):
        with pytest.raises(CorruptBlock):
            reader.get(7, block_hash)


def test_another_layout_never_finds_the_file(store):
    store.put(3)
    stranger = Store(store.directory, fingerprint="model=other", seed=2)
    with pytest.raises(BlockMissing):
        stranger.get(7)
    stranger.pool.close()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "AB" * 16, "ab/" * 8, "ab" * 40, "a\0b"])
def test_what_is_no_hash_never_becomes_a_path(store, name):
    with pytest.raises(TransferError, match="malformed"):
        store.get(0, name)
    with pytest.raises(TransferError, match="malformed"):
        store.put(0, name)


def test_a_stopped_read_writes_nothing_more(store, reader):
    store.put(3)
    gate = Gate()
    gate.close()
    before = reader.pool.blocks.copy()
    with pytest.raises(Stopped):
        reader.transport.connect(b"", 16).read([0], [7], [HASH], gate)
    assert np.array_equal(reader.pool.blocks, before)


def test_what_a_killed_writer_left_is_removed_at_the_next_start(store):
    store.put(3)
    shard = store.path().parent
    (shard / ".tmp-old").touch()
    (shard / ".tmp-new").touch()
    long_ago = time.time() - STALE_S - 1
    os.utime(shard / ".tmp-old", (long_ago, long_ago))
    Store(store.directory).pool.close()
    assert [path.name for path in shard.glob(".tmp-*")] == [".tmp-new"]


def test_a_directory_that_others_may_write_is_refused(tmp_path):
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="nobody else"):
        Store(tmp_path)


def test_a_file_in_place_of_the_directory_is_refused(tmp_path):
    (tmp_path / "kv").touch()
    with pytest.raises(ConfigError):
        Store(tmp_path / "kv")


class Full:
    """No file of this process may grow beyond a few bytes: what a full disk does to a write."""

    def __enter__(self):
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, self._before[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)


def test_a_full_disk_fails_the_offer_and_nothing_else(tmp_path, caplog):
    directory = tmp_path / "kv"

    async def body():
        async with ends("shared_storage", storage_dir=str(directory)) as both:
            with Full():
                for i in range(3):
                    handle = both.producer.offer(f"r{i}", 16, 1)
                    fetch = asyncio.ensure_future(both.fetch(handle, [0]))
                    await asyncio.sleep(0.05)
                    both.extend(f"r{i}", 0, [5], first_token=1)
                    with pytest.raises(TransferError, match="stored"):
                        await fetch
            assert both.source.num_held == 0
            assert both.producer.snapshot()["failures"] == {"kv_transfer_failed": 3}
            assert [path for path in directory.rglob("*") if path.is_file()] == []
            assert await both.fetch(both.offer("after", [5], first_token=2), [0]) == 2

    with caplog.at_level(logging.WARNING, "kv_transfer"):
        asyncio.run(body())
    assert [record.message for record in caplog.records].count(
        "KV blocks were not published: KV blocks cannot be stored: File too large"
    ) == 1


def test_a_file_lost_between_offer_and_read_fails_the_fetch(tmp_path):
    async def body():
        async with ends("shared_storage", storage_dir=str(tmp_path / "kv")) as both:
            handle = both.offer("r", [5, 6])
            await asyncio.sleep(0.2)
            for path in (tmp_path / "kv").rglob("0[56]*"):
                path.unlink() if path.is_file() else None
            with pytest.raises(BlockMissing):
                await both.fetch(handle, [0, 1])

    asyncio.run(body())


def test_an_engine_without_hashes_cannot_store(store):
    with pytest.raises(TransferError, match="hash of every block"):
        store.transport.publish([1, 2], [])
