"""The log of the prefix cache: whoever follows it knows exactly what the cache can find."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import pytest

from common.engine.driver import EngineDriver
from common.engine.prefix import PrefixHasher, short_hash
from common.engine.prefix_log import BlocksHeld, BlocksRemoved, BlocksStored, PrefixLog
from tests.common.engine.standin_model import make_engine, make_request


class Follower:
    """Believes the log and nothing else."""

    def __init__(self):
        self.found: set[bytes] = set()
        self.known = False
        self.stored = []

    def follow(self, result):
        for event in result.prefixes:
            if isinstance(event, BlocksHeld):
                self.found, self.known = set(event.digests), True
            elif isinstance(event, BlocksStored):
                assert not self.found & set(event.digests), "stored twice"
                self.found |= set(event.digests)
                self.stored.append(event)
            else:
                assert set(event.digests) <= self.found, "removed what was not there"
                self.found -= set(event.digests)


def step_until_done(engine, follower):
    while engine.has_work():
        follower.follow(engine.step())
        assert follower.found == set(engine._pool.digests())


@pytest.mark.parametrize("seed", range(5))
def test_the_log_is_the_cache_under_eviction_preemption_and_loads(seed):
    rng = random.Random(seed)
    engine = make_engine(num_blocks=14)
    follower = Follower()
    engine.report_prefixes()
    for number in range(30):
        shared = [rng.randrange(3)] * rng.choice([0, 4, 8, 11])
        prompt = shared + [rng.randrange(97) for _ in range(rng.randrange(1, 12))]
        salt = rng.choice(["", "tenant"])
        engine.add(make_request(f"r{number}", prompt, rng.randrange(1, 9), salt=salt))
        if rng.random() < 0.3 and (blocks := engine.reserve(2)):
            engine.free(blocks)
        for _ in range(rng.randrange(6)):
            follower.follow(engine.step())
        if rng.random() < 0.2:
            engine.abort(f"r{number}")
    step_until_done(engine, follower)
    assert sum(len(event.digests) for event in follower.stored) > 2 * 14, "nothing was evicted"


def test_a_stored_run_can_be_hashed_again_from_what_it_says():
    engine = make_engine()
    follower = Follower()
    engine.report_prefixes()
    engine.add(make_request("a", list(range(20, 39)), 6, salt="s"))
    step_until_done(engine, follower)
    tokens: list[int] = []
    hashes: list[bytes] = []
    for event in follower.stored:
        assert event.salt == "s"
        assert event.parent == (hashes[-1] if hashes else None)
        tokens += event.token_ids
        hashes = PrefixHasher("standin", 4).full_blocks(tokens, "s")
        assert tuple(hashes[-len(event.digests) :]) == event.digests
    assert tokens[:19] == list(range(20, 39))
    assert len(tokens) == 24, "19 prompt tokens and 5 answer tokens that were computed"


def test_what_is_stored_elsewhere_is_not_stored_again():
    engine = make_engine()
    follower = Follower()
    engine.report_prefixes()
    for name in "ab":  # computed side by side: neither finds the other's blocks
        engine.add(make_request(name, list(range(12)), 1))
    step_until_done(engine, follower)
    assert sum(len(event.digests) for event in follower.stored) == 3


def test_nobody_listening_means_no_news_and_stopping_ends_them():
    engine = make_engine()
    engine.add(make_request("a", list(range(12)), 1))
    while engine.has_work():
        assert engine.step().prefixes == ()
    engine.report_prefixes()
    assert engine.has_work(), "a report is due although nothing runs"
    (held,) = engine.step().prefixes
    assert isinstance(held, BlocksHeld)
    assert len(held.digests) == 3
    engine.stop_prefix_reports()
    engine.add(make_request("b", list(range(30, 42)), 1))
    while engine.has_work():
        assert engine.step().prefixes == ()


def test_removals_are_gathered_and_keep_their_place():
    log = PrefixLog(2)
    log.removed(b"a")
    log.removed(b"b")
    log.stored([1, 3, 4], [b"0", b"1", b"2", b"3", b"4"], np.arange(10), "")
    log.removed(b"c")
    assert len(log) == 4
    assert log.drain() == (
        BlocksRemoved((b"a", b"b")),
        BlocksStored((b"1",), b"0", (2, 3), ""),
        BlocksStored((b"3", b"4"), b"2", (6, 7, 8, 9), ""),
        BlocksRemoved((b"c",)),
    )
    assert log.drain() == ()


def test_an_idle_driver_delivers_a_report():
    async def body():
        driver = EngineDriver(make_engine())
        came = asyncio.get_running_loop().create_future()
        driver.listeners.append(lambda result: came.set_result(result.prefixes))
        driver.start(asyncio.get_running_loop())
        driver.post(lambda engine: engine.report_prefixes())
        try:
            assert await asyncio.wait_for(came, 5) == (BlocksHeld(()),)
        finally:
            await driver.stop()

    asyncio.run(body())


def test_the_short_hash_is_the_end_of_the_digest():
    assert short_hash(bytes(24) + b"\x80\0\0\0\0\0\0\x07") == (1 << 63) + 7
