"""The consumer's state machine, event by event: no sockets, no threads, time as a number."""

from __future__ import annotations

import pytest

from common.errors import CorruptBlock, LayoutMismatch, LeaseExpired, PeerLost, TransferError
from common.wire import KVHandle
from kv_transfer import messages as m
from kv_transfer.claim import (
    MAX_RETRIES,
    SETTLE_S,
    Claim,
    Connect,
    Copy,
    End,
    Landed,
    Phase,
    Remote,
    Send,
    StopCopy,
)
from kv_transfer.counters import ConsumerCounters
from kv_transfer.identity import KVIdentity
from kv_transfer.token_map import Target
from kv_transfer.transcript import digest

DEADLINE = 100.0


class Fetch:
    """A claim on an offer of `num_blocks` blocks of 16 tokens, and all it has done so far."""

    def __init__(self, num_blocks=2):
        handle = KVHandle(
            "0" * 40, "p", "p-1", "tcp://127.0.0.1:1", "memory", "f", 16 * num_blocks, num_blocks
        )
        self.counters = ConsumerCounters()
        info = KVIdentity("d", "d-1", "f")
        self.claim = Claim(handle, Remote(16, 64), info, DEADLINE, self.counters, "c" * 32)
        self.done = [*self.claim.start()]

    def __call__(self, actions):
        self.done += actions
        return actions

    def hears(self, message, now=1.0):
        return self(self.claim.on_message(message, now))

    def opened(self):
        return self.hears(m.Opened(self.claim.token, 10.0, 8, 64, b"pool"))

    def ready(self, first, blocks, first_token=None, epochs=None):
        epochs = tuple(epochs or [1] * len(blocks))
        is_last = first_token is not None
        return self.hears(
            m.Ready(self.claim.token, first, tuple(blocks), epochs, (), is_last, first_token)
        )

    def reading(self, writes_through_gate=True):
        """All is named and the copy runs."""
        self.opened()
        self(self.claim.connected(writes_through_gate))
        self(self.claim.read(Target((4, 5), 0, 16)))
        (copy,) = self.ready(0, [2, 3], first_token=7)
        assert isinstance(copy, Copy)
        return self

    def finishing(self):
        self.reading()(self.claim.copied())
        return self

    def finished(self, epochs=(1, 1), told=None):
        """The right confirmation of what `reading` has heard, unless it is to be wrong."""
        opened = m.Opened(self.claim.token, 10.0, 8, 64, b"pool")
        right = digest(opened, (2, 3), (1, 1), (), (), 7)
        return self.hears(m.Finished(self.claim.token, epochs, right if told is None else told))

    @property
    def ends(self):
        return [action for action in self.done if isinstance(action, End)]


def test_a_fetch_from_open_to_first_token():
    fetch = Fetch()
    (first,) = fetch.done
    assert isinstance(first, Send) and isinstance(first.message, m.Open)
    assert fetch.opened() == [Connect(m.Opened(fetch.claim.token, 10.0, 8, 64, b"pool"))]
    assert fetch.ready(0, [2]) == []  # where to? and from where?
    assert fetch(fetch.claim.read(Target((4, 5), 0, 16))) == []
    (copy,) = fetch(fetch.claim.connected(True))
    assert copy.remote == (2,) and [piece.target for piece in copy.pieces] == [4]
    assert fetch.ready(1, [3], first_token=7) == []  # one copy at a time
    (copy,) = fetch(fetch.claim.copied())
    assert copy.remote == (3,) and [piece.target for piece in copy.pieces] == [5]
    assert fetch(fetch.claim.copied()) == [Send(m.Finish(fetch.claim.token))]
    assert fetch.finished() == [End(7, None)]
    assert fetch.counters.fetched == 1


def test_what_comes_after_the_confirmation_undoes_nothing():
    """A heartbeat that crosses the confirmation is refused, for the offer has ended."""
    fetch = Fetch().finishing()
    fetch.finished()
    assert fetch.hears(m.Refused(fetch.claim.token, "kv_lease_expired", "over")) == []
    assert fetch(fetch.claim.fail(PeerLost("silence"), 2.0)) == []
    assert fetch(fetch.claim.tick(DEADLINE)) == []
    assert fetch.ends == [End(7, None)]


def test_a_confirmation_that_nobody_asked_for_is_no_success():
    for fetch in (Fetch(), Fetch().reading()):
        fetch.finished()
        if fetch.claim.phase is Phase.STOPPING:
            fetch(fetch.claim.copied())
        (end,) = fetch.ends
        assert end.first_token is None and "nobody had asked" in end.error.message


def test_other_epochs_in_the_confirmation_are_a_corrupt_block():
    fetch = Fetch().finishing()
    fetch.finished(epochs=(1, 2))
    (end,) = fetch.ends
    assert isinstance(end.error, CorruptBlock) and end.first_token is None


def test_a_bit_that_flipped_in_what_the_producer_said_is_a_corrupt_block():
    fetch = Fetch().finishing()
    fetch.finished(told=b"something else")
    (end,) = fetch.ends
    assert isinstance(end.error, CorruptBlock) and end.first_token is None


@pytest.mark.parametrize(
    "ready",
    [
        {"first": 1, "blocks": [3]},
        {"first": 0, "blocks": [2, 3, 4]},
        {"first": 0, "blocks": [8]},
        {"first": 0, "blocks": [2], "first_token": 7},
        {"first": 0, "blocks": [2, 3], "epochs": [1]},
    ],
)
def test_a_block_list_that_does_not_fit_ends_the_fetch(ready):
    fetch = Fetch()
    fetch.opened()
    fetch.ready(**ready)
    (end,) = fetch.ends
    assert end.first_token is None and fetch.done[-2] == Send(m.Cancel(fetch.claim.token))


def test_a_block_list_that_comes_twice_ends_the_fetch():
    fetch = Fetch()
    fetch.opened()
    fetch.ready(0, [2])
    fetch.ready(0, [2])
    assert "out of order" in fetch.ends[0].error.message


def test_blocks_of_another_size_are_refused_before_anything_is_opened():
    fetch = Fetch()
    fetch.hears(m.Opened(fetch.claim.token, 10.0, 8, 65, b"pool"))
    assert isinstance(fetch.ends[0].error, LayoutMismatch)
    assert not any(isinstance(action, Connect) for action in fetch.done)


def test_a_failed_copy_is_tried_again_and_then_given_up():
    fetch = Fetch().reading()
    copy = fetch.done[-1]
    for _ in range(MAX_RETRIES):
        assert fetch(fetch.claim.not_copied(CorruptBlock("damaged"), 2.0)) == [copy]
    fetch(fetch.claim.not_copied(CorruptBlock("damaged"), 2.0))
    assert fetch.counters.retries == {"kv_corrupt_block": MAX_RETRIES}
    assert isinstance(fetch.ends[0].error, CorruptBlock)


def test_a_connection_is_tried_again_in_the_same_budget():
    fetch = Fetch()
    (connect,) = fetch.opened()
    for _ in range(MAX_RETRIES):
        assert fetch(fetch.claim.not_connected(TransferError("busy"), 2.0)) == [connect]
    fetch(fetch.claim.not_connected(TransferError("busy"), 2.0))
    assert fetch.ends[0].error.message == "busy"


@pytest.mark.parametrize("kind", [LayoutMismatch, LeaseExpired, PeerLost])
def test_what_can_never_work_is_not_tried_again(kind):
    fetch = Fetch().reading()
    fetch(fetch.claim.not_copied(kind("no"), 2.0))
    assert isinstance(fetch.ends[0].error, kind) and not fetch.counters.retries


@pytest.mark.parametrize("answer", ["copied", "failed"])
def test_the_end_waits_until_a_stopped_copy_rests(answer):
    fetch = Fetch().reading()
    assert fetch(fetch.claim.cancel(2.0)) == [StopCopy()]
    assert fetch.hears(m.Refused(fetch.claim.token, "kv_peer_lost", "later")) == []
    assert fetch.claim.next_deadline() == 2.0 + SETTLE_S
    if answer == "copied":
        fetch(fetch.claim.copied())
    else:
        fetch(fetch.claim.not_copied(TransferError("stopped"), 2.5))
    (end,) = fetch.ends
    assert "cancelled" in end.error.message and end.error.quarantine == ()


def test_a_copy_that_does_not_rest_in_time_has_its_blocks_quarantined():
    fetch = Fetch().reading(writes_through_gate=False)
    fetch(fetch.claim.fail(PeerLost("silence"), 2.0))
    assert fetch(fetch.claim.tick(2.0 + SETTLE_S - 0.1)) == []
    fetch(fetch.claim.tick(2.0 + SETTLE_S))
    (end,) = fetch.ends
    assert end.error.quarantine == (4, 5)
    assert fetch(fetch.claim.copied()) == [Landed((4, 5))]
    assert fetch(fetch.claim.copied()) == []


def test_what_writes_through_a_gate_needs_no_quarantine():
    fetch = Fetch().reading()
    fetch(fetch.claim.cancel(2.0))
    fetch(fetch.claim.tick(2.0 + SETTLE_S))
    assert fetch.ends[0].error.quarantine == ()
    assert fetch(fetch.claim.copied()) == []


@pytest.mark.parametrize("reach", [lambda f: f, Fetch.opened, Fetch.reading, Fetch.finishing])
def test_every_state_ends_at_its_deadline(reach):
    fetch = Fetch()
    reach(fetch)
    fetch(fetch.claim.tick(DEADLINE))
    if fetch.claim.phase is Phase.STOPPING:
        fetch(fetch.claim.tick(DEADLINE + SETTLE_S))
    (end,) = fetch.ends
    assert "deadline" in end.error.message


def test_a_prefix_that_is_here_already_is_not_copied():
    fetch = Fetch(3)
    fetch.opened()
    fetch(fetch.claim.connected(True))
    fetch(fetch.claim.read(Target((6,), 32, 16)))
    assert fetch.ready(0, [1, 2]) == []
    (copy,) = fetch.ready(2, [3], first_token=7)
    assert copy.remote == (3,) and [piece.target for piece in copy.pieces] == [6]


def test_a_whole_prompt_that_is_here_already_needs_no_connection():
    fetch = Fetch(2)
    fetch.opened()
    fetch(fetch.claim.read(Target((), 32, 16)))
    assert fetch.ready(0, [1, 2], first_token=7) == [Send(m.Finish(fetch.claim.token))]
