"""`kv_transfer_params` at the front end: who is taken for what, and what is refused."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from common.api.settings import ApiSettings
from common.errors import BadRequest
from common.metrics import Metrics
from common.request import FinishReason, TokenEvent
from tests.common.api.apps import (
    MODEL,
    USER,
    InProcess,
    create_app,
    error_of,
    says,
    text_model,
    tokens,
)

TO_PREFILL = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
ANSWERED = {"do_remote_prefill": True, "do_remote_decode": False, "remote_request_id": "sealed"}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi"},
    "/v1/chat/completions": {"messages": USER},
    "/inference/v1/generate": {"token_ids": [1, 2]},
}


class InMemory:
    """Hand-overs of one token to nobody."""

    def __init__(self):
        self.offered, self.loaded = [], []

    async def offer(self, request):
        self.offered.append(request)
        return dict(ANSWERED), TokenEvent(
            request.request_id, 0, tokens("A")[:1], finish_reason=FinishReason.LENGTH
        )

    async def load(self, request, params):
        if params != ANSWERED:
            raise BadRequest("not ours", "kv_transfer_params")
        self.loaded.append(request)
        yield TokenEvent(request.request_id, 0, tokens("B")[:1])
        yield TokenEvent(request.request_id, 1, tokens("C")[:1], finish_reason=FinishReason.LENGTH)


class Routed(InProcess):
    def __init__(self):
        self.hand_overs = InMemory()
        self.engine = says("whole")
        self._app = create_app(
            self.engine,
            lambda model: text_model(),
            Metrics(model_name=MODEL),
            ApiSettings(),
            hand_overs=self.hand_overs,
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("params", [TO_PREFILL, ANSWERED, {}])
def test_without_the_flag_it_is_refused_by_name(path, params):
    answer = InProcess(says("x")).post(path, {**PATHS[path], "kv_transfer_params": params})
    error = error_of(answer, 400)
    assert error["param"] == "kv_transfer_params"
    assert "--allow-external-router" in error["message"]


@pytest.mark.parametrize("path", PATHS)
def test_a_prompt_is_offered_and_the_answer_says_where(path):
    app = Routed()
    limit = {"max_tokens": 1}
    if path.startswith("/inference"):
        body = {**PATHS[path], "sampling_params": limit}
    else:
        body = {**PATHS[path], **limit}
    answer = app.post(path, {**body, "stream": False, "kv_transfer_params": TO_PREFILL})
    assert answer.status_code == 200, answer.text
    assert answer.json()["kv_transfer_params"] == ANSWERED
    assert answer.json()["usage"]["completion_tokens"] == 1
    (offered,) = app.hand_overs.offered
    assert offered.sampling.max_tokens == 1
    assert app.engine.requests == []


def test_only_one_token_is_made_whatever_the_limit_says():
    app = Routed()
    app.complete(max_tokens=1, min_tokens=20, kv_transfer_params=TO_PREFILL)
    app.complete(max_tokens=50, kv_transfer_params=TO_PREFILL)
    for offered in app.hand_overs.offered:
        assert (offered.sampling.max_tokens, offered.sampling.min_tokens) == (1, 0)


@pytest.mark.parametrize("path", PATHS)
def test_what_was_answered_is_loaded(path):
    app = Routed()
    answer = app.post(path, {**PATHS[path], "kv_transfer_params": ANSWERED})
    assert answer.status_code == 200, answer.text
    assert "kv_transfer_params" not in answer.json()
    assert answer.json()["usage"]["completion_tokens"] == 2
    assert len(app.hand_overs.loaded) == 1
    assert app.engine.requests == []


def test_a_stream_may_be_loaded():
    answer = Routed().complete(kv_transfer_params=ANSWERED, stream=True)
    assert answer.status_code == 200
    assert '"text":"B"' in answer.text


@pytest.mark.parametrize(
    "params", [None, {}, {"do_remote_decode": False, "do_remote_prefill": None}]
)
def test_a_request_that_asks_for_neither_is_an_ordinary_one(params):
    app = Routed()
    answer = app.complete(kv_transfer_params=params)
    assert answer.json()["choices"][0]["text"] == "whole"
    assert len(app.engine.requests) == 1


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"kv_transfer_params": [1]}, "kv_transfer_params"),
        ({"kv_transfer_params": {"do_remote_decode": "yes"}}, "kv_transfer_params"),
        ({"kv_transfer_params": {"do_remote_decode": 1}}, "kv_transfer_params"),
        (
            {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": True}},
            "kv_transfer_params",
        ),
        ({"kv_transfer_params": TO_PREFILL, "stream": True}, "stream"),
        ({"kv_transfer_params": TO_PREFILL, "n": 2}, "kv_transfer_params"),
        ({"kv_transfer_params": TO_PREFILL, "prompt": ["a", "b"]}, "kv_transfer_params"),
        ({"kv_transfer_params": {**ANSWERED, "remote_request_id": "x"}}, "kv_transfer_params"),
        ({"ec_transfer_params": {}}, "ec_transfer_params"),
        ({"bootstrap_room": 3}, "bootstrap_room"),
    ],
)
def test_what_is_refused(body, param):
    assert error_of(Routed().complete(**body), 400)["param"] == param


def test_other_endpoints_refuse_it():
    answer = Routed().post("/v1/responses", {"input": "Hi", "kv_transfer_params": TO_PREFILL})
    assert isinstance(answer, httpx.Response)
    assert error_of(answer, 400)["param"] == "kv_transfer_params"
