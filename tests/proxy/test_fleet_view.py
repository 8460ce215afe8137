"""What policies see: an instance's last report, corrected by our own books."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.wire import InstanceInfo, Load
from proxy.fleet_view import Accounts, view_fleet
from proxy.membership import Membership

INFO = InstanceInfo(
    *("p", "1", "prefill", "http://h:1", "tcp://h:5", "", "m", "", 64, "f", "c", 100, 4)
)


def fleet(*infos):
    members = Membership()
    for number, info in enumerate(infos):
        info = replace(info, endpoint=f"tcp://h:{number + 1}")
        members.found(info, "static", 0.0)
        members.welcome(info.instance_id, info, 0.0)
    return members


def view(members, accounts, name="p"):
    return {v.instance_id: v for v in view_fleet(members, accounts, "m").instances}[name]


def test_before_the_first_report_our_books_count():
    members, accounts = fleet(INFO), Accounts()
    accounts.assign(1, ("p",), "p", 40)
    seen = view(members, accounts)
    assert (seen.queued_tokens, seen.num_requests) == (40, 1)


def test_a_report_counts_and_what_was_sent_after_it_is_added():
    members, accounts = fleet(INFO), Accounts()
    members.loaded("p", Load("1", 2, 1, 500, 60, 100), 0.1)
    assert view(members, accounts).queued_tokens == 500
    accounts.assign(1, ("p",), "p", 40)
    seen = view(members, accounts)
    assert (seen.queued_tokens, seen.num_requests) == (540, 4)
    assert seen.free_blocks == 60 - 40 // 4 - 1
    members.loaded("p", Load("1", 3, 0, 10, 50, 100), 0.6)
    seen = view(members, accounts)
    assert (seen.queued_tokens, seen.num_requests, seen.free_blocks) == (40, 3, 50)


def test_a_prompt_that_is_computed_is_not_queued():
    members, accounts = fleet(INFO), Accounts()
    members.loaded("p", Load("1", 0, 0, 0, 100, 100), 0.1)
    view(members, accounts)
    accounts.assign(1, ("p",), "p", 40)
    accounts.assign(1, ("p",), None, 40)
    members.loaded("p", Load("1", 0, 0, 0, 100, 100), 0.6)
    assert view(members, accounts).queued_tokens == 0


def test_what_a_report_counted_and_has_gone_since_is_not_queued():
    members, accounts = fleet(INFO), Accounts()
    accounts.assign(1, ("p",), "p", 40)
    members.loaded("p", Load("1", 1, 0, 40 + 25, 100, 100), 0.1)  # 25 are another proxy's
    accounts.reported(members.members["p"])
    accounts.assign(1, ("p",), None, 40)
    assert view(members, accounts).queued_tokens == 25


def test_what_is_cached_need_not_be_computed():
    members, accounts = fleet(INFO), Accounts()
    accounts.assign(1, ("p",), "p", 40, num_cached=32)
    assert view(members, accounts).queued_tokens == 8
    members.loaded("p", Load("1", 0, 1, 40, 100, 100), 0.1)
    assert view(members, accounts).queued_tokens == 8


def test_draining_and_foreign_instances_are_left_out():
    members = fleet(INFO, replace(INFO, instance_id="q", kv_fingerprint="g"))
    names = [v.instance_id for v in view_fleet(members, Accounts(), "m", "g").instances]
    assert names == ["q"]
    members.drain("q")
    assert view_fleet(members, Accounts(), "m", "g").instances == ()


def test_books_of_forgotten_instances_are_closed():
    members, accounts = fleet(INFO), Accounts()
    view(members, accounts)
    accounts.assign(1, ("gone",), None, 4)
    accounts.forget(members)
    assert accounts.num_requests("gone") == 1
    accounts.assign(1, (), None, 4)
    accounts.forget(members)
    assert set(accounts._accounts) == {"p"}


_places = st.lists(st.sampled_from(["p", "q", "r"]), max_size=2, unique=True)


@given(st.lists(st.tuples(st.integers(0, 5), _places, st.booleans(), st.integers(1, 50))))
def test_books_balance(moves):
    """However requests move about: the sums are those of where they are, and end at nothing."""
    accounts, where = Accounts(), {}
    for key, places, is_queued, num_tokens in moves:
        queued_at = places[0] if is_queued and places else None
        accounts.assign(key, tuple(places), queued_at, num_tokens)
        where[key] = (places, queued_at, num_tokens)
    for name in ("p", "q", "r"):
        assert accounts.num_requests(name) == sum(name in at for at, _, _ in where.values())
        queued = accounts._accounts[name].queued_tokens if name in accounts._accounts else 0
        assert queued == sum(n for _, at, n in where.values() if at == name)
    for key in where:
        accounts.assign(key, (), None, 0)
    assert not accounts._assigned
    assert all(not (a.num_requests or a.queued_tokens) for a in accounts._accounts.values())
