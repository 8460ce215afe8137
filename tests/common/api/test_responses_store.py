"""The store of responses: bounded in count, bytes and age, and closed between keys."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from common.api.responses.store import Store, StoreLimits

OWNERS = st.sampled_from(["", "anna", "ben", "cleo"])
KEYS = st.sampled_from([f"resp_{n}" for n in range(6)])


@dataclass
class Known:
    value: object
    size: int
    since: float


class StoreMachine(RuleBasedStateMachine):
    """Against plain dictionaries that forget nothing: what is missing must have had a reason."""

    @initialize(
        count=st.integers(1, 8), size=st.integers(1, 100), age=st.floats(1, 50, allow_nan=False)
    )
    def begin(self, count, size, age):
        self.limits = StoreLimits(count, size, age)
        self.store: Store[object] = Store(self.limits)
        self.now = 1000.0
        self.known = {}  # (owner, key) -> Known; what may still be there

    def held(self, owner):
        return sum(k.size for (who, _), k in self.known.items() if who == owner)

    def forget_the_expired(self):
        too_old = self.now - self.limits.age_s
        self.known = {at: k for at, k in self.known.items() if k.since >= too_old}

    @rule(seconds=st.floats(0, 30, allow_nan=False))
    def time_passes(self, seconds):
        self.now += seconds

    @rule(owner=OWNERS, key=KEYS, size=st.integers(0, 120))
    def put(self, owner, key, size):
        self.forget_the_expired()
        self.known.pop((owner, key), None)
        value = object()
        was_kept = self.store.put(owner, key, value, size, self.now)
        assert was_kept == (size <= self.limits.size_bytes)
        assert self.store.get(owner, key, self.now) is (value if was_kept else None)
        pushed_out = {
            at: self.known.pop(at)
            for at in list(self.known)
            if self.store.get(at[0], at[1], self.now) is None
        }
        assert was_kept or not pushed_out
        for (who, _), dropped in pushed_out.items():
            self.check_it_was_their_turn(who, dropped, pushed_out)
        if was_kept:
            self.known[owner, key] = Known(value, size, self.now)

    def check_it_was_their_turn(self, who, dropped, pushed_out):
        """Their oldest, and when their last one went they held no less than anybody."""
        assert all(k.since >= dropped.since for (w, _), k in self.known.items() if w == who)
        last = [known for (w, _), known in pushed_out.items() if w == who][-1]
        others = {w for w, _ in self.known}
        assert all(self.held(who) + last.size >= self.held(other) for other in others)

    @rule(owner=OWNERS, key=KEYS)
    def remove(self, owner, key):
        self.forget_the_expired()
        expected = self.known.pop((owner, key), None)
        assert self.store.remove(owner, key, self.now) is (expected and expected.value)
        assert self.store.get(owner, key, self.now) is None

    @rule(owner=OWNERS)
    def list_one_owner(self, owner):
        self.forget_the_expired()
        mine = [k for (who, _), k in self.known.items() if who == owner]
        values = list(self.store.values(owner, self.now))
        assert {id(value) for value in values} == {id(k.value) for k in mine}
        since = {id(k.value): k.since for k in mine}
        assert [since[id(v)] for v in values] == sorted(since.values(), reverse=True)

    @rule(owner=OWNERS, key=KEYS)
    def get(self, owner, key):
        self.forget_the_expired()
        expected = self.known.get((owner, key))
        assert self.store.get(owner, key, self.now) is (expected and expected.value)

    @invariant()
    def bounds_hold(self):
        if not hasattr(self, "store"):
            return
        self.store.get("", "", self.now)  # lets the expired go
        self.forget_the_expired()
        assert self.store.count == len(self.known) <= self.limits.count
        assert self.store.num_bytes == sum(k.size for k in self.known.values())
        assert self.store.num_bytes <= self.limits.size_bytes


StoreMachine.TestCase.settings = settings(max_examples=50, stateful_step_count=25)
TestStore = StoreMachine.TestCase


def test_the_one_who_holds_the_most_makes_room():
    store: Store[int] = Store(StoreLimits(count=100, size_bytes=100, age_s=10))
    store.put("small", "a", 1, 10, 0.0)
    for n in range(20):
        store.put("big", str(n), n, 30, float(n) / 100)
    assert store.get("small", "a", 1.0) == 1
    assert [store.get("big", str(n), 1.0) for n in (16, 17, 18, 19)] == [None, 17, 18, 19]


def test_age_is_counted_from_being_put():
    store: Store[int] = Store(StoreLimits(age_s=10))
    store.put("a", "x", 1, 1, 100.0)
    assert store.get("a", "x", 110.0) == 1
    assert store.get("a", "x", 110.1) is None
    assert store.count == store.num_bytes == 0
