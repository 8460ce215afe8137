"""Who is alive, with a hand-moved clock and no sockets."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from common.wire import InstanceInfo, Load
from proxy.membership import (
    MAX_INSTANCES,
    Connect,
    Disconnect,
    Lost,
    Membership,
    Poll,
    State,
    problem_of,
    reachable,
)
from proxy.wishes import Wishes, read_wishes, write_wishes


def make_info(instance_id="p0", incarnation="1", port=5000, **changes):
    info = InstanceInfo(
        instance_id=instance_id,
        incarnation=incarnation,
        role="prefill",
        url="http://127.0.0.1:8100",
        endpoint=f"tcp://127.0.0.1:{port}",
        side_channel="",
        model="m",
        model_path="models/m",
        max_model_len=64,
        kv_fingerprint="f",
        kv_connector="shm",
        num_blocks=8,
        block_size=4,
    )
    return replace(info, **changes)


def make_load(incarnation="1", **changes):
    return replace(Load(incarnation, 0, 0, 0, 8, 8), **changes)


def state_of(members):
    return members.members["p0"].state


def ready_member(info, now=0.0):
    members = Membership()
    members.found(info, "registry", now, b"peer")
    members.welcome(info.instance_id, info, now)
    return members


def test_an_instance_is_ready_once_it_says_welcome():
    members = Membership()
    assert members.found(make_info(), "registry", 0.0) == [Connect("p0", "tcp://127.0.0.1:5000")]
    assert state_of(members) is State.CONNECTING
    assert members.welcome("p0", make_info(), 0.1) == []
    assert state_of(members) is State.READY


def test_registering_every_second_changes_nothing():
    members = ready_member(make_info())
    assert members.found(make_info(), "registry", 1.0, b"peer") == []


def test_silence_makes_suspect_then_dead_and_a_sign_of_life_makes_ready():
    members = ready_member(make_info())
    states = []
    for now in (1.0, 1.6, 2.4):
        members.tick(now)
        states.append(state_of(members))
    assert states == [State.READY, State.SUSPECT, State.SUSPECT]
    members.loaded("p0", make_load(), 2.5)
    assert state_of(members) is State.READY
    for now in (3.0, 4.0, 5.0):
        assert members.tick(now) == []
    effects = members.tick(5.6)
    assert effects[0] == Disconnect("p0")
    assert isinstance(effects[1], Lost)
    assert state_of(members) is State.DEAD


def test_our_own_hang_is_not_held_against_instances():
    members = ready_member(make_info())
    members.tick(0.25)
    assert members.tick(60.0) == []
    assert state_of(members) in (State.READY, State.SUSPECT)


def test_a_dead_instance_that_registers_is_connected_again():
    members = ready_member(make_info())
    for now in range(1, 5):
        members.tick(float(now))
    assert state_of(members) is State.DEAD
    assert members.found(make_info(), "registry", 5.0) == [Connect("p0", "tcp://127.0.0.1:5000")]


def test_a_dead_instance_is_forgotten():
    members = ready_member(make_info())
    for now in range(1, 100):
        members.tick(float(now))
    assert members.members == {}


def test_a_successor_keeps_what_administrators_asked_for():
    before = Membership()
    before.watch("127.0.0.1:8100", "static")
    before.watch("127.0.0.1:8200", "admin")
    for name, port in (("p0", 5000), ("p1", 5001), ("p2", 5002), ("p3", 5003)):
        before.found(make_info(name, port=port), "registry", 0.0)
    before.drain("p0")
    before.drain("p3")
    before.remove("p1")
    after = Membership()
    after.take_over(msgspec.json.decode(msgspec.json.encode(before.wishes()), type=Wishes))
    assert after.wishes().watched == {"127.0.0.1:8100": "static", "127.0.0.1:8200": "admin"}
    for name, port in (("p0", 5000), ("p1", 5001), ("p2", 5002)):
        after.found(make_info(name, port=port), "registry", 0.0)
    after.found(make_info("p3", "restarted", 5003), "registry", 0.0)
    draining = {name: member.is_draining for name, member in after.members.items()}
    assert draining == {"p0": True, "p2": False, "p3": False}
    assert after.found(make_info("p1", "restarted", 5001), "registry", 1.0) != []


def test_wishes_are_read_whole_or_not_at_all(tmp_path, caplog):
    path = tmp_path / "wishes.json"
    assert read_wishes(path) is None
    wishes = Wishes({"a:1": "admin"}, {"p0": "1"}, {})
    write_wishes(path, wishes)
    assert read_wishes(path) == wishes
    path.write_text('{"watched": 3}')
    assert read_wishes(path) is None
    assert "cannot be read" in caplog.text


def test_a_broken_link_loses_the_work_and_is_tried_again():
    members = ready_member(make_info())
    assert members.disconnected("p0", 1.0) == [
        Disconnect("p0"),
        Lost("p0", "its connection broke"),
    ]
    assert members.disconnected("p0", 1.0) == []
    assert members.tick(1.25) == [Connect("p0", "tcp://127.0.0.1:5000")]
    members.welcome("p0", make_info(), 1.3)
    assert state_of(members) is State.READY


def test_a_restart_at_the_same_address_replaces_the_old_incarnation():
    members = ready_member(make_info())
    members.disconnected("p0", 1.0)
    members.tick(1.25)
    effects = members.welcome("p0", make_info(incarnation="2"), 1.3)
    assert effects == [Lost("p0", "it was restarted")]
    assert members.members["p0"].info.incarnation == "2"


def test_a_restart_at_another_address_is_taken_as_soon_as_the_old_link_is_broken():
    members = ready_member(make_info())
    members.disconnected("p0", 1.0)
    moved = make_info(incarnation="2", port=5001)
    assert members.found(moved, "registry", 1.1) == [Connect("p0", "tcp://127.0.0.1:5001")]


def test_a_second_welcome_means_that_our_requests_were_given_up():
    members = ready_member(make_info())
    effects = members.welcome("p0", make_info(), 1.0)
    assert effects == [Lost("p0", "it had lost contact with this proxy")]
    assert state_of(members) is State.READY


def test_another_instance_at_the_same_address_replaces_the_old_one():
    members = ready_member(make_info())
    effects = members.welcome("p0", make_info("p9", "7"), 1.0)
    assert [type(effect) for effect in effects] == [Disconnect, Lost, Connect]
    assert list(members.members) == ["p9"]


@pytest.mark.parametrize(
    "intruder",
    [make_info(incarnation="2", port=6666), make_info("other", "2", port=5000)],
    ids=["same id, other address", "other id, same address"],
)
def test_a_live_instance_keeps_its_id_and_address(intruder, caplog):
    members = ready_member(make_info())
    for now in (0.1, 0.2, 0.3):
        assert members.found(intruder, "registry", now) == []
    assert members.num_refused == 3
    assert len(caplog.records) == 1
    assert list(members.members) == ["p0"]
    assert members.members["p0"].endpoint == "tcp://127.0.0.1:5000"


def test_a_heartbeat_of_another_incarnation_resets_the_link():
    members = ready_member(make_info())
    assert members.loaded("p0", make_load("2"), 1.0) == [
        Disconnect("p0"),
        Lost("p0", "its connection broke"),
    ]


def test_deregistration_counts_only_from_whoever_registered():
    members = ready_member(make_info())
    members.deregister("p0", "1", b"somebody else")
    members.deregister("p0", "stale", b"peer")
    assert not members.members["p0"].is_draining
    members.deregister("p0", "1", b"peer")
    assert members.members["p0"].is_draining


def test_an_instance_that_left_is_forgotten_when_it_dies():
    members = ready_member(make_info())
    members.deregister("p0", "1", b"peer")
    for now in range(1, 6):
        members.tick(float(now))
    assert members.members == {}


def test_draining_by_load_or_by_hand():
    members = ready_member(make_info())
    members.loaded("p0", make_load(is_draining=True), 0.5)
    assert members.members["p0"].is_draining
    members.loaded("p0", make_load(), 1.0)
    assert not members.members["p0"].is_draining
    members.drain("p0")
    assert members.members["p0"].is_draining


def test_at_most_so_many_instances_and_the_dead_make_room():
    members = Membership()
    for i in range(MAX_INSTANCES + 5):
        members.found(make_info(f"p{i}", port=1000 + i), "registry", 0.0)
    assert len(members.members) == MAX_INSTANCES
    assert members.num_refused == 5
    for now in range(1, 5):
        members.tick(float(now))
    late = make_info("late", port=9)
    assert members.found(late, "registry", 5.0) == [Connect("late", "tcp://127.0.0.1:9")]
    assert len(members.members) == MAX_INSTANCES


def test_a_static_address_is_polled_until_it_answers_and_again_after_a_death():
    members = Membership()
    members.watch("127.0.0.1:8100", "static")
    assert members.tick(0.0) == [Poll("127.0.0.1:8100")]
    assert members.tick(0.5) == []
    members.polled("127.0.0.1:8100", "connection refused", 0.5)
    assert members.tick(1.1) == [Poll("127.0.0.1:8100")]
    assert members.polled("127.0.0.1:8100", make_info(), 1.2) == [
        Connect("p0", "tcp://127.0.0.1:5000")
    ]
    members.welcome("p0", make_info(), 1.3)
    polls = [tuple(members.tick(1.3 + i / 2)) for i in range(1, 9)]
    assert (Poll("127.0.0.1:8100"),) not in polls[:5]
    assert any(Poll("127.0.0.1:8100") in effects for effects in polls[5:])


def test_a_removed_instance_stays_away_until_it_restarts():
    members = ready_member(make_info())
    assert [type(e) for e in members.remove("p0")] == [Disconnect, Lost]
    assert members.found(make_info(), "registry", 1.0) == []
    assert members.found(make_info(incarnation="2"), "registry", 2.0) != []
    with pytest.raises(KeyError):
        members.remove("nobody")


def test_a_removed_static_instance_comes_back_when_it_is_added_again():
    members = Membership()
    members.watch("127.0.0.1:8100", "admin")
    members.polled("127.0.0.1:8100", make_info(), 0.0)
    members.remove("p0")
    assert members.tick(1.0) == []
    members.watch("127.0.0.1:8100", "admin")
    assert members.polled("127.0.0.1:8100", make_info(), 2.0) != []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"instance_id": ""}, "empty"),
        ({"model": ""}, "empty"),
        ({"wire_version": 99}, "wire_version"),
        ({"endpoint": "ipc:///tmp/x"}, "endpoint"),
        ({"endpoint": "tcp://host"}, "endpoint"),
        ({"endpoint": "tcp://host:99999999"}, "endpoint"),
        ({"model_path": "x" * 5000}, "longer"),
    ],
)
def test_unusable_instances_are_refused_with_a_reason(changes, word):
    info = make_info(**changes)
    assert word in problem_of(info)
    members = Membership()
    assert members.found(info, "registry", 0.0) == []
    assert members.members == {}


def test_a_wildcard_endpoint_gets_the_host_that_was_polled():
    assert reachable("tcp://0.0.0.0:5000", "10.0.0.7") == "tcp://10.0.0.7:5000"
    assert reachable("tcp://0.0.0.0:5000", "::1") == "tcp://[::1]:5000"
    assert reachable("tcp://10.0.0.9:5000", "10.0.0.7") == "tcp://10.0.0.9:5000"


_ids = st.sampled_from(["a", "b", "c"])
_incarnations = st.sampled_from(["1", "2"])
_ports = st.sampled_from([1, 2])
_steps = st.one_of(
    st.tuples(st.just("found"), _ids, _incarnations, _ports),
    st.tuples(st.just("welcome"), _ids, _ids, _incarnations, _ports),
    st.tuples(st.just("load"), _ids, _incarnations),
    st.tuples(st.just("disconnected"), _ids),
    st.tuples(st.just("remove"), _ids),
    st.tuples(st.just("tick"), st.floats(0.1, 5.0)),
)


@given(st.lists(_steps, max_size=40))
def test_links_and_members_always_fit(steps):
    """Whatever happens: exactly one open link for each linked member, one instance an address."""
    members, links, now = Membership(), set(), 0.0
    for step in steps:
        kind, *args = step
        effects = []
        if kind == "found":
            effects = members.found(make_info(args[0], args[1], args[2]), "registry", now)
        elif kind == "welcome" and args[0] in links:
            effects = members.welcome(args[0], make_info(args[1], args[2], args[3]), now)
        elif kind == "load" and args[0] in links:
            effects = members.loaded(args[0], make_load(args[1]), now)
        elif kind == "disconnected" and args[0] in links:
            effects = members.disconnected(args[0], now)
        elif kind == "remove" and args[0] in members.members:
            effects = members.remove(args[0])
        elif kind == "tick":
            now += args[0]
            effects = members.tick(now)
        for effect in effects:
            if isinstance(effect, Connect):
                assert effect.instance_id not in links, "a link was left open"
                links.add(effect.instance_id)
            elif isinstance(effect, Disconnect):
                links.remove(effect.instance_id)
        assert links == {i for i, m in members.members.items() if m.is_linked}
        connected = [m.endpoint for m in members.members.values() if m.is_connected]
        assert len(connected) == len(set(connected))
