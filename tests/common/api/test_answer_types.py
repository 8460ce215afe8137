"""The checker that all other tests here go through does see what is wrong."""

import json

import pytest
from jsonschema import ValidationError  # type: ignore[import-untyped]

from tests.common.api.answer_types import (
    Checked,
    check_answer,
    check_documented,
    check_events,
)
from tests.common.api.apps import InProcess, says

CHAT = "/v1/chat/completions"
APP = InProcess(says("Hello"))


def spoiled(**changes):
    return json.dumps({**APP.chat().json(), **changes}, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "changes",
    [{"id": None}, {"created": "1"}, {"choices": [{}]}, {"object": "x"}, {"surprise": 1}],
    ids=str,
)
def test_a_wrong_answer_is_seen(changes):
    check_answer("POST", CHAT, spoiled())
    with pytest.raises(Exception, match=next(iter(changes))):
        check_answer("POST", CHAT, spoiled(**changes))


@pytest.mark.parametrize(
    ("path", "event"),
    [
        (CHAT, 'data: {"object":"chat.completion.chunk"}\n\n'),
        (CHAT, 'data: {"error":{"message":"x"}}\n\n'),
        ("/v1/completions", 'data: {"object":"text_completion","choices":[]}\n\n'),
        ("/v1/messages", 'event: message_stop\ndata: {"type":"message_start"}\n\n'),
        ("/v1/responses", 'event: response.created\ndata: {"type":"response.created"}\n\n'),
        (CHAT, "data: [DONE]"),
    ],
)
def test_a_wrong_event_is_seen(path, event):
    with pytest.raises((ValueError, AssertionError)):
        check_events(path, event.encode(), is_whole=True)


def test_what_the_document_does_not_tell_is_seen():
    paths = APP.get("/openapi.json").json()["paths"]
    check_documented(paths, "GET", "/version", 200, b'{"version":"1"}')
    for wrong in (b'{"version":1}', b"{}", b'{"version":"1","surprise":1}'):
        with pytest.raises(ValidationError, match="version|surprise"):
            check_documented(paths, "GET", "/version", 200, wrong)
    error = b'{"error":{"message":"x","type":"y","param":null,"code":"z"}}'
    check_documented(paths, "GET", "/v1/models/a/b", 404, error)
    with pytest.raises(KeyError):
        check_documented(paths, "GET", "/version", 418, error)


def test_every_answer_of_an_app_is_looked_at():
    async def strange(scope, receive, send):
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"id":"x"}'})

    asked = InProcess(says("x"))
    asked._app = Checked(strange)
    assert asked.chat().json() == {"id": "x"}
    found, Checked.problems[:] = list(Checked.problems), []
    assert len(found) == 1 and f"POST {CHAT}: ValidationError" in found[0]
