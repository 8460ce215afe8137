from typing import Any

from common.errors import Overloaded
from common.instance.outbox import Origin, Outbox
from common.request import FinishReason, TokenEvent
from common.wire import Accepted, Failed, KVHandle, Tokens

HANDLE = KVHandle("offer", "p", "1", "tcp://127.0.0.1:1", "shm", "f", 3, 1)


class Sent(list[Any]):
    def __call__(self, peer, message):
        self.append((peer, message))
        return True


def event(request_id, index, finish=None):
    return TokenEvent(request_id, index, (7,), finish_reason=finish)


def test_accepted_comes_once_and_before_any_token():
    sent = Sent()
    outbox = Outbox(sent)
    outbox.open("r", Origin(b"a", 2))
    outbox.attach("r", HANDLE)
    outbox.deliver([event("r", 0)])
    outbox.accept("r")  # whoever added it learns only now that it was taken
    assert sent == [
        (b"a", Accepted("r", 2, HANDLE)),
        (b"a", Tokens((event("r", 0),), (2,))),
    ]


def test_a_step_makes_one_message_per_proxy():
    sent = Sent()
    outbox = Outbox(sent)
    for name, peer in (("r", b"a"), ("s", b"b"), ("t", b"a")):
        outbox.open(name, Origin(peer, 1))
        outbox.accept(name)
    del sent[:]
    outbox.deliver([event("r", 4), event("s", 0), event("t", 9), event("unknown", 0)])
    assert sent == [
        (b"a", Tokens((event("r", 4), event("t", 9)), (1, 1))),
        (b"b", Tokens((event("s", 0),), (1,))),
    ]


def test_a_request_ends_once():
    sent = Sent()
    outbox = Outbox(sent)
    outbox.open("r", Origin(b"a", 1))
    outbox.deliver([event("r", 0, FinishReason.STOP)])
    outbox.deliver([event("r", 1)])
    outbox.fail("r", Overloaded("late"))
    assert [type(message) for _, message in sent] == [Accepted, Tokens]
    assert len(outbox) == 0


def test_a_failure_says_what_and_to_whom():
    sent = Sent()
    outbox = Outbox(sent)
    outbox.open("r", Origin(b"a", 3))
    outbox.fail("r", Overloaded("queue full"))
    assert sent == [(b"a", Failed("r", 3, "queue_full", "queue full", None))]
    assert outbox.close("r") is None


def test_requests_are_known_by_their_proxy():
    outbox = Outbox(Sent())
    outbox.open("r", Origin(b"a", 1))
    outbox.open("s", Origin(b"b", 1))
    assert outbox.of_peer(b"a") == ["r"]
