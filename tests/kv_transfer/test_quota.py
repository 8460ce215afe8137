"""A limit on stored blocks that holds at every moment, whoever writes; the least used go first."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from common.errors import ConfigError, TransferError
from kv_transfer.transport.base import Gate
from kv_transfer.transport.block_file import HEADER_BYTES, BlockMissing
from kv_transfer.transport.quota import USAGE
from kv_transfer.transport.shared_storage import SharedStorageTransport
from tests.kv_transfer.ends import Pool

FILE_BYTES = HEADER_BYTES + 4096
LIMIT = 10 * FILE_BYTES


def name(number):
    return f"{number:064x}"


def taken(root):
    sizes = {}  # by inode: a file that is renamed meanwhile may be met twice
    for path in root.glob("*/*/*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            sizes[status.st_ino] = status.st_size
    return sum(sizes.values())


class Writer:
    def __init__(self, root, seed=1, limit=LIMIT):
        self.pool = Pool(seed=seed)
        self.transport = SharedStorageTransport(self.pool.region, str(root), "model=demo", limit)

    def put(self, number):
        self.transport.publish([number % 16], [name(number)])

    def get(self, number):
        self.transport.connect(b"", 16).read([0], [0], [name(number)], Gate())

    def has(self, number):
        return self.transport.num_stored([name(number)]) == 1


@pytest.fixture
def root(tmp_path):
    return tmp_path / "kv"


def test_the_limit_holds_and_what_was_used_last_stays(root):
    writer, other = Writer(root), Writer(root, seed=2)
    for number in range(40):
        (writer, other)[number % 2].put(number)
        if number >= 3:
            writer.get(3)  # is used again and again
        assert taken(root) <= LIMIT
    assert writer.has(3) and writer.has(39)
    assert not any(writer.has(number) for number in (0, 1, 2, 4, 20))
    counts = [each.transport.counters()["kv_storage_evictions"] for each in (writer, other)]
    assert sum(counts) == 40 - len([n for n in range(40) if writer.has(n)])
    with pytest.raises(BlockMissing):
        other.get(0)


PROGRAM = """
import sys
from tests.kv_transfer.test_quota import Writer
from pathlib import Path
writer = Writer(Path(sys.argv[1]), seed=int(sys.argv[2]))
for number in range(60):
    writer.put(1000 * int(sys.argv[2]) + number)
"""


def test_the_limit_holds_among_processes(root):
    Writer(root)
    writers = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(root), str(seed)]) for seed in (1, 2)
    ]
    highest = 0
    while any(writer.poll() is None for writer in writers):
        with (root / USAGE).open("r+") as held:  # a census of one moment
            fcntl.flock(held, fcntl.LOCK_EX)
            highest = max(highest, taken(root))
        time.sleep(0.002)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert 0 < taken(root) <= LIMIT
    assert highest <= LIMIT
    assert int((root / USAGE).read_text()) >= taken(root)  # it errs upwards only


def test_what_is_not_ours_is_never_deleted(root):
    root.mkdir(mode=0o700)
    precious = root / "a" / "b" / "thesis.txt"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(bytes(20 * FILE_BYTES))
    writer = Writer(root)
    for number in range(20):
        writer.put(number)
    assert precious.stat().st_size == 20 * FILE_BYTES
    assert writer.has(19)


def test_what_killed_writers_took_is_counted_and_found_again(root):
    writer = Writer(root)
    writer.put(1)
    (directory,) = root.glob("*/*")
    for i in range(8):  # made, never written to the end
        left = directory / f".tmp-{i:016x}"
        left.touch()
        os.truncate(left, FILE_BYTES)
        os.utime(left, (1, 1))
    (root / USAGE).write_text(str(10**9))  # and a count that is wrong
    writer.put(2)
    writer.put(3)
    assert writer.has(2) and writer.has(3) and taken(root) <= LIMIT


def test_a_file_deleted_by_hand_only_makes_room(root):
    writer = Writer(root)
    for number in range(5):
        writer.put(number)
    for path in root.glob("*/*/*"):
        path.unlink()
    for number in range(10, 30):
        writer.put(number)
    assert taken(root) <= LIMIT and writer.has(29)


def test_a_lower_limit_is_reached_at_the_start(root):
    writer = Writer(root)
    for number in range(9):
        writer.put(number)
    Writer(root, limit=3 * FILE_BYTES)
    assert taken(root) <= 3 * FILE_BYTES


def test_a_limit_below_one_block_is_refused(root):
    with pytest.raises(ConfigError, match="one KV block"):
        Writer(root, limit=FILE_BYTES - 1)


def test_leading_blocks_are_loaded_and_a_damaged_one_ends_the_run(root):
    writer, reader = Writer(root, limit=None), Writer(root, seed=2, limit=None)
    for number in range(4):
        writer.put(number)
    names = [name(number) for number in range(6)]
    assert reader.transport.num_stored(names) == 4
    assert reader.transport.load([8, 9, 10, 11], names[:4]) == 4
    assert np.array_equal(reader.pool.blocks[8:12], writer.pool.blocks[:4])
    (path,) = root.rglob(names[2])
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 5] ^= 1
    path.write_bytes(data)
    assert reader.transport.load([8, 9, 10, 11], names[:4]) == 2
    assert not path.exists()  # a miss from now on
    assert reader.transport.num_stored(names) == 2
    counts = reader.transport.counters()
    assert (counts["kv_storage_hits"], counts["kv_storage_misses"]) == (6, 1)
    assert (counts["kv_storage_damaged"], counts["kv_storage_read_bytes"]) == (1, 6 * 4096)


def test_a_lock_that_nobody_gives_back_fails_the_offer_only(root, monkeypatch):
    writer = Writer(root)
    monkeypatch.setattr("kv_transfer.transport.quota.LOCK_S", 0.05)
    with (root / USAGE).open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TransferError, match="stored"):
            writer.put(1)
    writer.put(1)
    assert writer.has(1)
