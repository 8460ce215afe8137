"""What the controller suggests: tables, properties, a simulated fleet that must come to rest."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxy.advice import FleetSample, InstanceSample, Targets, advise

TARGETS = Targets(window_s=20.0, cooldown_s=60.0)
STEP_S = 4.0
SLOW = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=40)


@dataclass
class Simulated:
    """Fluid queues: prompts drain at `rate` a second and prefill instance; the KV that answers need
    is spread over the decode instances, and waits when it does not fit."""

    prefills: int
    decodes: int
    prompt_tokens_per_s: float = 0.0
    kv_need: float = 0.0  # in instances' worth of blocks
    rate: float = 1000.0
    now: float = 0.0
    queue: float = 0.0
    computed: float = 0.0
    changed_at: float | None = None
    roles: list[str] = field(init=False)
    window: list[FleetSample] = field(default_factory=list)
    flips: list[tuple[float, str]] = field(default_factory=list)

    def __post_init__(self):
        self.roles = ["prefill"] * self.prefills + ["decode"] * self.decodes

    @property
    def split(self):
        return self.roles.count("prefill"), self.roles.count("decode")

    def sample(self):
        prefills, decodes = self.split
        usage = min(1.0, self.kv_need / decodes)
        waiting = int(10 * max(0.0, self.kv_need / decodes - 1.0))
        load = self.prompt_tokens_per_s / (prefills * self.rate)
        # An instance is seen with a prompt as often as it has one.
        instances = []
        for number, role in enumerate(self.roles):
            draw = zlib.crc32(f"{self.now} {number}".encode()) % 1000
            is_seen = draw < 1000 * load
            queued = int(self.queue / prefills) + (500 if is_seen else 0)
            if role == "prefill":
                instances.append(InstanceSample(f"i{number}", role, True, queued, 1, 0, 0.1))
            else:
                instances.append(InstanceSample(f"i{number}", role, True, 0, 4, waiting, usage))
        return FleetSample(self.now, tuple(instances), int(self.computed))

    def run(self, seconds):
        for _ in range(int(seconds / STEP_S)):
            self.now += STEP_S
            prefills, _ = self.split
            came = self.prompt_tokens_per_s * STEP_S
            done = min(prefills * self.rate * STEP_S, self.queue + came)
            self.queue += came - done
            self.computed += done
            self.window.append(self.sample())
            advice = advise(self.window, TARGETS, self.now, self.changed_at)
            assert advice.prefill + advice.decode <= len(self.roles)
            if advice.flip is None:
                continue
            name, side = advice.flip
            assert self.roles[int(name[1:])] != side
            self.roles[int(name[1:])] = side
            self.flips.append((self.now, side))
            self.changed_at = self.now
            self.window.clear()
            assert min(self.split) >= 1, "a role is empty"
            assert self.split == (advice.prefill, advice.decode)
        return self


def test_prompts_that_queue_take_idle_decode_instances_one_by_one():
    fleet = Simulated(1, 5, prompt_tokens_per_s=2500.0, kv_need=0.5).run(1200)
    assert fleet.split[0] >= 3, "2500 tokens/s need three"
    assert {side for _, side in fleet.flips} == {"prefill"}
    assert fleet.queue == 0


def test_answers_that_wait_take_idle_prefill_instances():
    fleet = Simulated(4, 1, prompt_tokens_per_s=300.0, kv_need=1.6).run(1200)
    assert fleet.split[1] >= 2
    assert {side for _, side in fleet.flips} == {"decode"}


def test_a_load_that_turns_around_is_followed_and_then_left_alone():
    fleet = Simulated(2, 4, prompt_tokens_per_s=2700.0, kv_need=0.3).run(900)
    assert fleet.split[0] >= 3
    before = len(fleet.flips)
    fleet.prompt_tokens_per_s, fleet.kv_need, fleet.queue = 200.0, 4.0, 0.0
    fleet.run(1500)
    assert fleet.split[1] >= 4
    turned = [side for _, side in fleet.flips[before:]]
    assert set(turned) == {"decode"}
    settled = len(fleet.flips)
    fleet.run(3600)
    assert len(fleet.flips) == settled, "it flaps"


@SLOW
@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.floats(0.0, 8000.0),
    st.floats(0.0, 8.0),
)
def test_under_any_steady_load_it_comes_to_rest_and_never_turns_back(
    prefills, decodes, tokens_per_s, kv_need
):
    fleet = Simulated(prefills, decodes, tokens_per_s, kv_need).run(1500)
    assert len({side for _, side in fleet.flips}) <= 1, fleet.flips
    assert len(fleet.flips) < prefills + decodes
    settled = len(fleet.flips)
    fleet.run(1500)
    assert len(fleet.flips) == settled


@SLOW
@given(st.lists(st.tuples(st.floats(0.0, 8000.0), st.floats(0.0, 8.0)), max_size=6))
def test_flips_keep_their_distance_whatever_the_load_does(phases):
    fleet = Simulated(3, 3)
    for fleet.prompt_tokens_per_s, fleet.kv_need in phases:
        fleet.run(150)
    times = [at for at, _ in fleet.flips]
    assert all(b - a >= TARGETS.cooldown_s for a, b in zip(times, times[1:], strict=False))


def decode(name, usage=0.1, num_requests=1, **changes):
    made = InstanceSample(name, "decode", True, 0, num_requests, 0, usage)
    return replace(made, **changes)


def prefill(name, queued=0, **changes):
    return replace(InstanceSample(name, "prefill", True, queued, 1, 0, 0.1), **changes)


def samples(*instances, count=21, computed=100, **fields):
    return [FleetSample(float(at), instances, at * computed, **fields) for at in range(count)]


BUSY = (prefill("p0", 5000), decode("d0", num_requests=3), decode("d1", num_requests=2))


def test_the_side_that_gives_gives_who_has_least_to_do():
    advice = advise(samples(*BUSY), TARGETS, 20.0)
    assert advice.flip == ("d1", "prefill")
    assert (advice.prefill, advice.decode) == (2, 1)
    assert "prefill" in advice.reason


@pytest.mark.parametrize(
    ("instances", "reason"),
    [
        ((prefill("p0", 5000), decode("d0")), "none to give"),
        ((prefill("p0", 5000), decode("d0", 0.5), decode("d1", 0.5)), "needs what it has"),
        ((prefill("p0", 5000), decode("d0", 1.0), decode("d1", 1.0)), "both"),
        ((prefill("p0"), decode("d0"), decode("d1")), "as many as"),
        ((prefill("p0", 5000), decode("d0"), decode("d1", is_usable=False)), "none to give"),
    ],
)
def test_when_nobody_flips(instances, reason):
    advice = advise(samples(*instances), TARGETS, 20.0)
    assert advice.flip is None
    assert reason in advice.reason


def test_a_short_burst_flips_nobody():
    calm, burst = samples(prefill("p0"), *BUSY[1:]), samples(*BUSY)
    assert advise(calm[:12] + burst[12:], TARGETS, 20.0).flip is None
    assert advise(burst[:12] + calm[12:], TARGETS, 20.0).flip is None


def test_a_fleet_that_has_just_changed_is_watched_first():
    before, after = samples(*BUSY, decode("d2")), samples(*BUSY)
    advice = advise(before[:10] + after[10:], TARGETS, 20.0)
    assert (advice.flip, advice.reason) == (None, "the fleet has changed: watching")


def test_old_samples_count_for_nothing():
    assert advise(samples(*BUSY), TARGETS, 500.0).reason == "nothing has been seen yet"


def test_it_waits_after_its_own_flip():
    assert advise(samples(*BUSY), TARGETS, 20.0, changed_at=-10.0).flip is None
    assert advise(samples(*BUSY), TARGETS, 20.0, changed_at=-41.0).flip is not None


def test_targets_of_latency_count_where_they_are_given():
    calm = samples(prefill("p0", 10), *BUSY[1:], computed=4000, ttft_s=0.9, itl_s=0.01)
    assert advise(calm, TARGETS, 20.0).flip is None
    strict = replace(TARGETS, ttft_s=0.5)
    assert advise(calm, strict, 20.0).flip == ("d1", "prefill")
    slow = samples(prefill("p0"), prefill("p1"), decode("d0"), itl_s=0.2)
    assert advise(slow, replace(TARGETS, itl_s=0.1), 20.0).flip == ("p0", "decode")
