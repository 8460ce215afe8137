"""When the fleet has room for one more prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec.structs import replace as changed

from common.admission.admission import Want
from proxy.policy import InstanceView, Snapshot
from proxy.room import backlog, has_room

WANT = Want(num_tokens=100, max_backlog=1000, num_running=5)
P = InstanceView("p0", "prefill", "m", "f", "shm", 4096, 32, False, 0, 1, 100, 100, 1, 4)
D = changed(P, instance_id="d0", role="decode")
BOTH = changed(P, instance_id="b0", role="both")


def room(*instances, want=WANT, **how):
    return has_room(Snapshot("m", instances), want, **how)


def test_an_idle_fleet_has_room_and_none_at_all_tells_why_later():
    assert room(P, D) and room(BOTH) and room(D) and room(P)
    assert room()


@pytest.mark.parametrize(
    "full", [{"queued_tokens": 1000}, {"queued_tokens": 5000}, {"free_blocks": 3}]
)
def test_prompts_wait_for_those_before_them_and_for_blocks(full):
    assert not room(changed(P, **full), D)
    assert room(changed(P, **full), changed(P, instance_id="p1"), D)
    assert not room(changed(BOTH, **full))


def test_decoding_needs_a_seat():
    taken = changed(D, num_requests=6)  # four run at once, and two wait for them
    assert room(P, changed(D, num_requests=5))
    assert not room(P, taken)
    assert room(P, taken, changed(D, instance_id="d1"))
    assert room(changed(P, num_requests=50), D)  # where prompts are computed, tokens count
    assert not room(changed(BOTH, num_requests=6))
    assert not room(changed(P, num_requests=6))  # alone, it does both
    unknown = changed(D, max_num_seqs=0, num_requests=200)
    assert room(P, unknown)


def test_for_a_key_that_runs_nothing_there_is_a_little_more_room():
    only = replace(WANT, is_only=True)
    taken = changed(D, num_requests=6)
    assert room(changed(P, queued_tokens=1000), taken, want=only)
    assert not room(changed(P, queued_tokens=4000), taken, want=only)
    assert not room(P, changed(D, num_requests=8), want=only)
    assert not room(changed(P, free_blocks=3), D, want=only)


def test_where_prompts_are_decoded_our_own_count_of_them_matters():
    """Reports are half a second old, and the fleet's books count prompts at prefill instances."""
    begun = replace(WANT, num_begun=1000)
    assert not room(BOTH, want=begun) and not room(D, want=begun)
    assert room(BOTH, changed(BOTH, instance_id="b1"), want=begun)
    assert room(P, D, want=begun)
    assert not room(P, D, want=begun, whole=True)
    assert not room(P, changed(D, queued_tokens=1000), whole=True)
    assert room(changed(P, queued_tokens=5000), D, whole=True)


def test_what_runs_nothing_of_ours_is_never_full():
    full: Any = {"num_ours": 0, "num_requests": 500, "queued_tokens": 10**6, "free_blocks": 0}
    assert room(changed(P, **full), changed(D, **full))


def test_a_waiting_prompt_goes_at_once_where_nothing_is_before_it():
    assert room(P, D, want=replace(WANT, max_backlog=0))


def test_others_and_suspects_do_not_count():
    idle_suspect = changed(D, instance_id="d1", is_suspect=True)
    other = changed(D, instance_id="d2", model="other")
    assert not room(P, changed(D, num_requests=6), idle_suspect, other)
    assert room(P, idle_suspect)


def test_the_backlog_is_the_shortest():
    ps = [changed(P, instance_id=f"p{n}", queued_tokens=n) for n in (700, 300)]
    assert backlog(Snapshot("m", (*ps, D))) == 300
    assert backlog(Snapshot("m", (changed(BOTH, queued_tokens=5),))) == 5
    assert backlog(Snapshot("m", ())) == 0
