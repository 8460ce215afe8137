"""One request's life: told as tables of events and actions, then under random disorder."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    InstanceLost,
    LeaseExpired,
    Overloaded,
    Unavailable,
)
from common.request import EngineRequest, FinishReason, SamplingParams, TokenEvent, TokenLogprob
from common.wire import Abort, KVHandle, RunDecode, RunPrefill, RunWhole
from proxy.choreography import AskRoute, Choreography, End, Limits, Phase, Send
from proxy.policy import NoInstance, Pair, Whole

HANDLE = KVHandle("o", "p", "1", "tcp://x:1", "shm", "f", 3, 1)
LIMITS = Limits()


def make_request(output=(), max_tokens=8, **sampling):
    return EngineRequest("r", (1, 2, 3), SamplingParams(max_tokens, **sampling), tuple(output))


def event(index, *tokens, finish=None, wire_id="r", **fields):
    return TokenEvent(wire_id, index, tuple(tokens), finish_reason=finish, **fields)


STOP = FinishReason.STOP


class Play:
    """Drives a machine and keeps what the client and the instances got."""

    def __init__(self, route, request=None):
        self.machine = Choreography(request or make_request(), LIMITS)
        self.route = route
        self.now = 0.0
        self.client = []
        self.sent = []
        self.asked = []
        self.ends = []
        self.do(self.machine.start())

    def do(self, actions):
        assert not (actions and self.ends), "an action after the end"
        for action in actions:
            if isinstance(action, TokenEvent):
                self.client.append(action)
            elif isinstance(action, Send):
                self.sent.append((action.instance_id, action.message))
            elif isinstance(action, AskRoute):
                self.asked.append(action)
                self.do(self.machine.routed(self.route, self.now))
            else:
                assert isinstance(action, End)
                self.ends.append(action.error)

    def accepted(self, who="p", attempt=None):
        self.do(self.machine.accepted(who, attempt or self.machine.attempt, HANDLE, self.now))

    def tokens(self, who, *args, attempt=None, **fields):
        attempt = attempt or self.machine.attempt
        self.do(self.machine.tokens_came(who, attempt, event(*args, **fields), self.now))

    def failed(self, who, error):
        self.do(self.machine.failed(who, self.machine.attempt, error, self.now))

    def lost(self, who):
        self.do(self.machine.lost(who, "gone", self.now))

    def at(self, now):
        self.now = now
        self.do(self.machine.tick(now))

    @property
    def text(self):
        return [token for e in self.client for token in e.token_ids]

    @property
    def log(self):
        return [(who, type(message).__name__) for who, message in self.sent]


def handing_over():
    play = Play(Pair("p", "d"))
    play.accepted()
    play.tokens("p", 0, 10)
    assert play.machine.phase is Phase.HANDING_OVER
    return play


def running():
    play = handing_over()
    play.tokens("d", 1, 11)
    assert play.machine.phase is Phase.RUNNING
    return play


# --- the way it should go ------------------------------------------------------------------------


def test_prefill_then_decode():
    play = Play(Pair("p", "d"))
    assert play.log == [("p", "RunPrefill")]
    play.accepted()
    assert play.log == [("p", "RunPrefill"), ("d", "RunDecode")]
    assert play.sent[1][1] == RunDecode(play.machine.request, HANDLE, 1)
    play.tokens("p", 0, 10)
    assert play.text == [10]
    play.tokens("d", 1, 11, 12)
    play.tokens("d", 3, 13, finish=STOP)
    assert play.text == [10, 11, 12, 13]
    assert play.client[-1].finish_reason is STOP
    assert play.ends == [None]
    assert play.log == [("p", "RunPrefill"), ("d", "RunDecode")]


def test_whole():
    play = Play(Whole("d"))
    assert play.sent == [("d", RunWhole(play.machine.request, 1))]
    play.tokens("d", 0, 10)
    play.tokens("d", 1, 11, finish=STOP)
    assert (play.text, play.ends) == ([10, 11], [None])


def test_a_first_token_that_finishes_tells_both_at_once():
    play = Play(Pair("p", "d"))
    play.accepted()
    play.tokens("p", 0, 10, finish=STOP)
    assert play.ends == [None]
    assert play.sent[2:] == [("d", Abort("r")), ("p", Abort("r"))]


def test_decode_may_be_ahead_of_the_first_token():
    play = Play(Pair("p", "d"))
    play.accepted()
    play.tokens("d", 1, 11)
    play.tokens("d", 2, 12)
    assert play.text == []
    play.tokens("p", 0, 10)
    assert play.text == [10, 11, 12]
    assert play.machine.phase is Phase.RUNNING


def test_decode_that_computed_all_itself_makes_the_offer_needless():
    play = Play(Pair("p", "d"))
    play.accepted()
    play.tokens("d", 0, 10)
    assert play.sent[2:] == [("p", Abort("r"))]
    play.tokens("p", 0, 10)
    play.tokens("d", 1, 11, finish=STOP)
    assert (play.text, play.ends) == ([10, 11], [None])


def test_duplicates_are_dropped_with_their_logprobs():
    play = running()
    probs = tuple(TokenLogprob(-float(i), 1) for i in range(4))
    play.tokens("d", 0, 10, 11, 12, 13, logprobs=probs)
    assert play.client[-1] == event(2, 12, 13, logprobs=probs[2:])
    play.tokens("d", 1, 11)
    assert play.text == [10, 11, 12, 13]


def test_a_finish_that_brings_only_known_tokens_still_finishes():
    play = running()
    play.tokens("d", 1, 11, finish=STOP)
    assert play.client[-1] == event(2, finish=STOP)
    assert play.ends == [None]


# --- refusals ------------------------------------------------------------------------------------


def test_no_instance_is_a_refusal():
    play = Play(NoInstance("model differs"))
    assert isinstance(play.ends[0], Unavailable)
    assert play.ends[0].message == "model differs"


def test_a_bad_request_is_not_tried_elsewhere():
    play = Play(Pair("p", "d"))
    play.failed("p", ContextLengthExceeded("too long"))
    assert isinstance(play.ends[0], ContextLengthExceeded)
    assert len(play.asked) == 1


def test_overload_moves_on_and_is_told_if_there_is_no_other():
    play = Play(Pair("p", "d"))
    play.route = Pair("p2", "d")
    play.failed("p", Overloaded("full"))
    assert play.asked[-1].avoid == {"p"}
    assert play.log == [("p", "RunPrefill"), ("p2", "RunPrefill")]
    play.failed("p2", Overloaded("full"))
    assert isinstance(play.ends[0], Overloaded)


# --- failures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Play(Pair("p", "d")), handing_over, running])
def test_decode_lost_goes_on_elsewhere_after_the_same_tokens(make):
    play = make()
    before = play.text
    play.route = Pair("p", "d2")
    play.lost("d")
    if play.machine.phase is not Phase.ACCEPTING:
        pytest.fail("no new attempt")
    who, message = play.sent[-1]
    assert (who, type(message)) == ("p", RunPrefill)
    assert message.attempt == 2
    assert message.request.request_id == "r~2"
    assert message.request.output_token_ids == tuple(before)
    play.accepted()
    play.tokens("p", len(before), 20, wire_id="r~2")
    play.tokens("d2", len(before) + 1, 21, wire_id="r~2", finish=STOP)
    assert play.text == [*before, 20, 21]
    assert {e.request_id for e in play.client} == {"r"}
    assert play.ends == [None]


def test_prefill_lost_before_its_token_starts_again_and_stops_decode():
    play = Play(Pair("p", "d"))
    play.accepted()
    play.route = Whole("d")
    play.lost("p")
    assert play.log[2:] == [("d", "Abort"), ("d", "RunWhole")]


def test_prefill_lost_after_its_token_leaves_decode_alone():
    play = handing_over()
    play.lost("p")
    play.tokens("d", 1, 11, finish=STOP)
    assert (play.text, play.ends, len(play.sent)) == ([10, 11], [None], 2)


def test_an_orphaned_hand_over_has_a_deadline():
    play = handing_over()
    play.lost("p")
    play.at(LIMITS.orphan_s - 0.1)
    assert len(play.asked) == 1
    play.route = Whole("d")
    play.at(LIMITS.orphan_s)
    assert play.asked[-1].prefer_whole
    assert play.log[2:] == [("d", "Abort"), ("d", "RunWhole")]


def test_prefill_is_irrelevant_once_decode_runs():
    play = running()
    play.lost("p")
    play.failed("p", LeaseExpired("late"))
    assert len(play.asked) == 1
    assert not play.ends


def test_a_failed_hand_over_goes_on_from_another_source():
    play = Play(Pair("p", "d", has_other_source=True))
    play.accepted()
    assert play.sent[-1] == ("d", RunDecode(play.machine.request, HANDLE, 1, True))
    play.tokens("p", 0, 10)
    play.route = Pair("q", "d")
    play.failed("d", LeaseExpired("expired"))
    assert play.log[2:] == [("p", "Abort"), ("q", "RunPrefill")]
    play.accepted("q")
    assert not play.sent[-1][1].has_other_source
    play.tokens("q", 1, 11)
    play.tokens("d", 2, 12, finish=STOP)
    assert (play.text, play.ends) == ([10, 11, 12], [None])


def test_a_failed_hand_over_does_without_and_avoids_the_producer():
    play = handing_over()
    play.route = Whole("d")
    play.failed("d", LeaseExpired("expired"))
    assert play.asked[-1] == AskRoute(4, frozenset({"p"}), True, loader="d")
    assert play.log[2:] == [("p", "Abort"), ("d", "RunWhole")]


def test_late_messages_of_an_old_attempt_are_dropped():
    play = running()
    play.route = Whole("d")
    play.lost("d")
    play.tokens("d", 2, 99, attempt=1)
    play.do(play.machine.failed("d", 1, InstanceLost("old"), 0.0))
    play.accepted("p", attempt=1)
    assert play.text == [10, 11]
    assert len(play.asked) == 2


@pytest.mark.parametrize(
    "bad",
    [event(5, 15), event(-1, 15), event(1, 99, 12), event(0, 10, 99)],
    ids=["gap", "negative", "contradiction", "contradiction in the past"],
)
def test_wrong_tokens_end_the_attempt_not_the_answer(bad):
    play = running()
    play.route = Whole("d2")
    play.do(play.machine.tokens_came("d", 1, bad, 0.0))
    assert play.text == [10, 11]
    assert play.log[2:] == [("d", "Abort"), ("d2", "RunWhole")]


def test_an_instance_that_gives_up_is_a_failure():
    play = running()
    play.route = Whole("d2")
    play.tokens("d", 2, finish=FinishReason.ABORT)
    assert play.log[2:] == [("d2", "RunWhole")]
    assert not play.ends


def test_prefill_that_does_not_accept_is_left():
    play = Play(Pair("p", "d"))
    play.route = Pair("p2", "d")
    play.at(LIMITS.accept_s)
    assert play.log[1:] == [("p", "Abort"), ("p2", "RunPrefill")]


def test_endless_silence_of_a_live_instance_ends():
    play = running()
    play.route = NoInstance("none")
    play.at(LIMITS.stall_s)
    assert play.log[2:] == [("d", "Abort")]
    for step in range(200):
        if play.ends:
            break
        play.at(LIMITS.stall_s + step / 4)
    assert isinstance(play.ends[0], DeadlineExceeded)


def test_waits_for_an_instance_but_not_for_ever():
    play = running()
    play.route = NoInstance("none")
    play.lost("d")
    assert not play.ends
    times = [t / 4 for t in range(100)]
    ended = next(t for t in times if (play.at(t), play.ends)[1])
    assert LIMITS.recovery_s <= ended <= LIMITS.recovery_s + 1
    assert isinstance(play.ends[0], InstanceLost)


def test_goes_on_when_an_instance_comes_back():
    play = running()
    play.route = NoInstance("none")
    play.lost("d")
    play.at(5.0)
    play.route = Whole("d")
    play.at(7.0)
    assert play.sent[-1][1].request.output_token_ids == (10, 11)


def test_attempts_are_bounded_and_counted_without_progress():
    play = Play(Whole("d"))
    for attempt in range(1, LIMITS.max_attempts + 1):
        play.route = Whole(f"d{attempt}")
        play.lost(play.machine.decode)
    assert isinstance(play.ends[0], InstanceLost)
    lucky = Play(Whole("d"))
    for index in range(20):
        lucky.tokens(lucky.machine.decode, index, index)
        lucky.route = Whole(f"d{index}")
        lucky.lost(lucky.machine.decode)
    assert not lucky.ends
    assert lucky.text == list(range(20))


def test_prompt_logprobs_are_told_once():
    probs = (None, TokenLogprob(-1.0, 1))
    play = Play(Whole("d"), make_request(prompt_logprobs=0))
    play.tokens("d", 0, 10, prompt_logprobs=probs)
    play.route = Whole("d2")
    play.lost("d")
    assert play.sent[-1][1].request.sampling.prompt_logprobs is None
    play.tokens("d2", 1, 11, prompt_logprobs=probs, wire_id="r~2")
    assert [e.prompt_logprobs for e in play.client] == [probs, ()]


def test_a_request_that_was_begun_elsewhere_continues():
    play = Play(Pair("p", "d"), make_request(output=(7, 8)))
    play.accepted()
    play.tokens("p", 2, 10)
    play.tokens("d", 3, 11, finish=STOP)
    assert play.text == [10, 11]


def test_an_attempt_inherits_nothing_from_the_one_before():
    play = handing_over()
    play.lost("d")
    play.accepted()
    assert play.machine.phase is Phase.PREFILLING
    play.lost("p")
    assert len(play.asked) == 3, "the token of the first attempt was taken for the second's"
    early = Play(Pair("p", "d"))
    early.accepted()
    early.tokens("d", 1, 11)
    early.lost("p")
    early.accepted()
    early.tokens("p", 0, 10, wire_id="r~2")
    assert (early.text, early.machine.phase) == ([10], Phase.HANDING_OVER)


def test_the_only_instance_is_asked_again_after_a_pause():
    play = Play(Whole("d"))
    play.failed("d", Unavailable("not now"))
    assert play.log == [("d", "RunWhole")]
    play.at(10 * LIMITS.backoff_s)
    assert play.log == [("d", "RunWhole")] * 2


# --- the client leaves ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Play(Pair("p", "d")), {"p"}),
        (handing_over, {"p", "d"}),
        (running, {"d"}),
        (lambda: Play(Whole("d")), {"d"}),
    ],
    ids=["accepting", "handing over", "running", "whole"],
)
def test_leaving_stops_whoever_works(make, told):
    play = make()
    before = len(play.sent)
    play.do(play.machine.client_gone())
    assert {who for who, _ in play.sent[before:]} == told
    assert all(message == Abort("r") for _, message in play.sent[before:])
    assert play.ends == [None]
    assert play.machine.client_gone() == ()


# --- disorder ------------------------------------------------------------------------------------

ANSWER = tuple(range(100, 110))


class Simulation:
    """Instances that answer rightly over links that delay, repeat and reorder; any may die."""

    def __init__(self, draw):
        self.draw = draw
        self.alive = {"p0", "p1", "d0", "d1"}
        self.held = {}  # wire id: instances that have it
        self.wire = []  # messages on their way to the proxy: (instance, method, args)
        self.machine = Choreography(make_request(max_tokens=len(ANSWER)), LIMITS)
        self.now = 0.0
        self.client = []
        self.ends = []

    @property
    def text(self):
        return [token for e in self.client for token in e.token_ids]

    def route(self, ask):
        prefills = sorted(i for i in self.alive if i[0] == "p" and i not in ask.avoid)
        decodes = sorted(i for i in self.alive if i[0] == "d" and i not in ask.avoid)
        if not self.alive:
            return NoInstance("none")
        if prefills and decodes and not ask.prefer_whole:
            return Pair(self.draw(st.sampled_from(prefills)), self.draw(st.sampled_from(decodes)))
        return Whole(self.draw(st.sampled_from(decodes or prefills or sorted(self.alive))))

    def do(self, actions):
        assert not (actions and self.ends), "an action after the end"
        for action in actions:
            if isinstance(action, TokenEvent):
                self.client.append(action)
            elif isinstance(action, AskRoute):
                self.do(self.machine.routed(self.route(action), self.now))
            elif isinstance(action, End):
                self.ends.append(action.error)
            else:
                self.receive(action.instance_id, action.message)

    def receive(self, who, message):
        if isinstance(message, Abort):
            self.held.get(message.request_id, set()).discard(who)
            return
        request, attempt = message.request, message.attempt
        self.held.setdefault(request.request_id, set()).add(who)
        base = len(request.output_token_ids)
        if isinstance(message, RunPrefill):
            self.wire.append((who, "accepted", (attempt, HANDLE)))
            self.answer(who, request.request_id, attempt, base, base + 1)
        else:
            first = base + 1 if isinstance(message, RunDecode) else base
            self.answer(who, request.request_id, attempt, first, len(ANSWER))

    def answer(self, who, wire_id, attempt, first, last):
        for index in range(first, last):
            finish = FinishReason.LENGTH if index + 1 == len(ANSWER) else None
            message = event(index, ANSWER[index], finish=finish, wire_id=wire_id)
            self.wire.append((who, "tokens_came", (attempt, message)))
        if first >= len(ANSWER):  # the first token was the last one: D has nothing to add
            self.held[wire_id].discard(who)

    def deliver(self, position):
        who, method, args = self.wire[position]
        if method == "tokens_came" and args[1].finish_reason is not None:
            self.held[args[1].request_id].discard(who)
        self.do(getattr(self.machine, method)(who, *args, self.now))

    def kill(self, who):
        self.alive.discard(who)
        for holders in self.held.values():
            holders.discard(who)
        self.wire = [item for item in self.wire if item[0] != who]
        self.do(self.machine.lost(who, "killed", self.now))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_disorder_ends_once_with_the_right_tokens(data):
    sim = Simulation(data.draw)
    machine = sim.machine
    sim.do(machine.start())
    for _ in range(data.draw(st.integers(0, 60))):
        kind = data.draw(st.sampled_from(["next"] * 6 + ["any", "again", "kill", "time", "fail"]))
        if kind == "next" and sim.wire:
            sim.deliver(0)
            sim.wire.pop(0) if sim.wire else None
        elif kind == "any" and sim.wire:
            position = data.draw(st.integers(0, len(sim.wire) - 1))
            item = sim.wire[position]
            sim.deliver(position)
            sim.wire.remove(item) if item in sim.wire else None
        elif kind == "again" and sim.wire:
            sim.deliver(data.draw(st.integers(0, len(sim.wire) - 1)))
        elif kind == "kill" and len(sim.alive) > 1:
            sim.kill(data.draw(st.sampled_from(sorted(sim.alive))))
        elif kind == "fail" and machine.instances:
            who = data.draw(st.sampled_from(machine.instances))
            error = data.draw(
                st.sampled_from([LeaseExpired("x"), Overloaded("x"), Unavailable("x")])
            )
            sim.held.get(machine.wire_id, set()).discard(who)
            sim.do(machine.failed(who, machine.attempt, error, sim.now))
        elif kind == "time":
            sim.now += data.draw(st.sampled_from([0.1, 1.0, 12.0]))
            sim.do(machine.tick(sim.now))
        assert sim.text == list(ANSWER[: len(sim.text)])
    if data.draw(st.booleans()):
        sim.do(machine.client_gone())
    for _ in range(2000):
        if sim.ends:
            break
        if sim.wire:
            item = sim.wire[0]
            sim.deliver(0)
            sim.wire.remove(item) if item in sim.wire else None
        else:
            sim.now += 1.0
            sim.do(machine.tick(sim.now))
    assert len(sim.ends) == 1
    assert machine.phase is Phase.ENDED
    if sim.client and sim.client[-1].finish_reason:
        assert sim.text == list(ANSWER)
    in_play = {who: wire for wire, holders in sim.held.items() for who in holders}
    # Whoever still holds something is a P whose blocks D has read: the side channel frees those.
    assert all(who.startswith("p") and sim.client for who in in_play), in_play
