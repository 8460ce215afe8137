"""The index against a naive model, and the following of instances against lost messages."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common.engine.prefix import PrefixHasher, short_hash
from common.request import EngineRequest, SamplingParams
from common.wire import InstanceInfo, Prefixes
from proxy.prefix_follower import PrefixFollower, PromptPrefix
from proxy.prefix_index import EXPECT_S, MAX_EXPECTED_BLOCKS, PrefixIndex

NAMES = ["a", "b", "c"]
HASHES = list(range(8))


class IndexMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[str, set[int]] = {name: set() for name in NAMES}
        self.soon = {}  # (name, hash): until
        self.now = 0.0

    blocks = st.lists(st.sampled_from(HASHES), max_size=5)

    @rule(name=st.sampled_from(NAMES), hashes=blocks)
    def add(self, name, hashes):
        self.index.add(name, hashes)
        self.held[name] |= set(hashes)

    @rule(name=st.sampled_from(NAMES), hashes=blocks)
    def remove(self, name, hashes):
        self.index.remove(name, hashes)
        self.held[name] -= set(hashes)

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name):
        self.index.forget(name)
        self.held[name] = set()
        self.soon = {key: until for key, until in self.soon.items() if key[0] != name}

    @rule(name=st.sampled_from(NAMES))
    def clear(self, name):
        self.index.clear(name)
        self.held[name] = set()

    @rule(name=st.sampled_from(NAMES), hashes=blocks)
    def expect(self, name, hashes):
        self.index.expect(name, hashes, self.now)
        self.soon.update({(name, block): self.now + EXPECT_S for block in hashes})

    @rule(seconds=st.sampled_from([0.5, 3.0, EXPECT_S]))
    def wait(self, seconds):
        self.now += seconds

    @rule(chain=st.permutations(HASHES))
    def leading(self, chain):
        expected = {}
        for name in NAMES:
            depth = 0
            while depth < len(chain) and (
                chain[depth] in self.held[name]
                or self.soon.get((name, chain[depth]), -1.0) > self.now
            ):
                depth += 1
            if depth:
                expected[name] = depth
        assert self.index.leading(chain, self.now) == expected

    @invariant()
    def counts_are_right(self):
        assert self.index.num_blocks == sum(map(len, self.held.values()))


IndexMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestIndex = IndexMachine.TestCase


def test_nothing_is_left_when_everybody_is_forgotten():
    index = PrefixIndex()
    for name in NAMES:
        index.add(name, HASHES)
        index.expect(name, HASHES, 0.0)
    for name in NAMES:
        index.forget(name)
    assert repr(index) == "PrefixIndex(; expected=0)"
    assert not (index._holders or index._expected or index._expectations)


def test_what_does_not_fit_is_left_out():
    index = PrefixIndex(max_blocks=10)
    index.add("a", range(8))
    index.add("b", range(8))
    assert (index.num_blocks, index.num_ignored) == (10, 6)
    assert index.leading(list(range(8)), 0.0) == {"a": 8, "b": 2}
    for start in range(0, 4 * MAX_EXPECTED_BLOCKS, 1000):
        index.expect("a", range(start, start + 1000), 0.0)
    assert len(index._expected) <= MAX_EXPECTED_BLOCKS


# --- following -----------------------------------------------------------------------------------


def hears(follower, instance_id, *messages, now=0.0):
    for message in messages:
        follower.came(instance_id, message, now)


def test_it_asks_once_and_again_only_without_an_answer():
    follower = PrefixFollower()
    fleet = {"p0": "x"}
    assert follower.due(fleet, 0.0) == ["p0"]
    assert follower.due(fleet, 1.9) == []
    assert follower.due(fleet, 2.0) == ["p0"]
    hears(follower, "p0", Prefixes("x", 0, (1, 2), is_reset=True), now=2.1)
    assert follower.due(fleet, 4.5) == []
    assert follower.due(fleet, 7.2) == ["p0"], "silent for too long"
    assert follower.index.leading([1, 2], 7.2) == {}


def test_a_gap_forgets_all_and_asks_at_once():
    follower = PrefixFollower()
    follower.due({"p0": "x", "p1": "y"}, 0.0)
    hears(follower, "p1", Prefixes("y", 0, (1,), is_reset=True))
    hears(
        follower,
        "p0",
        Prefixes("x", 0, (1, 2), is_reset=True),
        Prefixes("x", 1, (3,), removed=(2,)),
    )
    assert follower.index.leading([1, 3], 0.0) == {"p0": 2, "p1": 1}
    hears(follower, "p0", Prefixes("x", 3, (4,)))
    assert follower.index.leading([1, 3], 0.0) == {"p1": 1}
    assert follower.due({"p0": "x", "p1": "y"}, 0.1) == ["p0"]
    hears(follower, "p0", Prefixes("x", 4, (5,)))
    assert follower.index.leading([5], 0.1) == {}, "changes without a beginning are not believed"
    hears(follower, "p0", Prefixes("x", 0, (1, 3, 4), is_reset=True))
    assert follower.index.leading([1, 3, 4], 0.1) == {"p0": 3, "p1": 1}


def test_another_incarnation_begins_anew():
    follower = PrefixFollower()
    follower.due({"p0": "x"}, 0.0)
    hears(follower, "p0", Prefixes("x", 0, (1,), is_reset=True))
    assert follower.due({"p0": "y"}, 0.1) == ["p0"]
    hears(follower, "p0", Prefixes("x", 1, (2,)))
    assert follower.index.num_blocks == 0
    follower.due({}, 0.2)
    assert follower.index.known() == []


def test_a_lossy_link_ends_in_the_truth():
    """Whatever is lost: when messages come through again, the index is what the cache is."""
    rng = random.Random(5)
    follower, seq, now = PrefixFollower(), 0, 0.0
    truth: set[int] = set()
    for step in range(400):
        now += 0.5
        loses = step < 380 and rng.random() < 0.2
        asked = bool(follower.due({"p0": "x"}, now)) and not loses
        added, removed = {rng.randrange(50)} - truth, {rng.randrange(50)} & truth
        truth = (truth | added) - removed
        if asked:
            message, seq = Prefixes("x", 0, tuple(truth), is_reset=True), 1
        else:
            message, seq = Prefixes("x", seq, tuple(added), tuple(removed)), seq + 1
        if not loses:
            follower.came("p0", message, now)
    assert follower.num_followed == 1
    assert follower.num_resets > 5
    assert {h for h in range(50) if follower.index.leading([h], now)} == truth


# --- the chain of a prompt -----------------------------------------------------------------------


def info(name, fingerprint="f", block_size=4):
    return InstanceInfo(
        name, "x", "prefill", "", "", "", "m", "", 64, fingerprint, "shm", 64, block_size
    )


def request(tokens, salt=""):
    return EngineRequest("r", tuple(tokens), SamplingParams(1), cache_salt=salt)


def test_a_prompt_is_found_where_the_engine_would_find_it():
    index = PrefixIndex()
    for name, fingerprint, size, salt in (
        ("same", "f", 4, ""),
        ("other-model", "g", 4, ""),
        ("other-size", "f", 8, ""),
        ("other-tenant", "f", 4, "t"),
    ):
        digests = PrefixHasher(fingerprint, size).full_blocks(range(12), salt)
        index.add(name, [short_hash(digest) for digest in digests])
    infos = [
        info("same"),
        info("other-model", "g"),
        info("other-size", "f", 8),
        info("other-tenant"),
        info("broken", "f", 0),
    ]
    prompt = PromptPrefix(request([*range(11), 99, 100]))
    assert prompt.cached_tokens(index, infos, 0.0) == {
        "same": 8,
        "other-model": 8,
        "other-size": 8,
    }
    salted = PromptPrefix(request(range(8), "t"), output=range(8, 12))
    assert salted.cached_tokens(index, infos, 0.0) == {"other-tenant": 12}
