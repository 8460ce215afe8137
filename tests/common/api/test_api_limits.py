"""Rates per key and deadlines as clients meet them: statuses, headers, events, nothing left."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import anthropic
import httpx
import openai
import pytest

from common.admission.admission import Admission, AdmissionLimits
from common.admission.rate_limit import Rates
from common.api.key_ring import KeyRing, Terms
from common.api.scripted import Script, ScriptedEngine
from common.api.settings import ApiSettings
from common.errors import ConfigError
from common.metrics import Metrics
from tests.common.api.apps import (
    MODEL,
    USER,
    InProcess,
    app_of,
    create_app,
    error_of,
    says,
    served,
    text_model,
    tokens,
)

LONG = "word " * 200


class NoSeats:
    def has_room(self, want):
        return False

    def backlog(self):
        return 0


def slow(**delays):
    return ScriptedEngine(Script(tokens(LONG), **delays), model=MODEL)


# --- rates ----------------------------------------------------------------------------------------


def test_openais_client_sees_the_limit_and_its_headers():
    app = app_of(says("Hello"), api_keys=("one", "two"), rates=Rates(requests=1, tokens=1000))
    with served(app) as url:
        first, second = (
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)
            for key in ("one", "two")
        )
        with first, second:
            answer = first.completions.with_raw_response.create(model=MODEL, prompt="Hi")
            assert answer.headers["x-ratelimit-limit-requests"] == "1"
            assert answer.headers["x-ratelimit-remaining-requests"] == "0"
            assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
            assert int(answer.headers["x-ratelimit-remaining-tokens"]) < 1000
            with pytest.raises(openai.RateLimitError) as refused:
                first.chat.completions.create(model=MODEL, messages=USER)  # type: ignore[arg-type]
            headers = refused.value.response.headers
            assert 1 <= int(headers["retry-after"]) <= 60
            assert headers["x-ratelimit-remaining-requests"] == "0"
            assert headers["x-ratelimit-reset-requests"].endswith("s")
            assert refused.value.code == "rate_limit_exceeded"
            assert refused.value.type == "requests"
            second.completions.create(model=MODEL, prompt="Hi")
            for path in ("/health", "/v1/models", "/metrics"):
                got = httpx.get(url + path, headers={"x-api-key": "one"})
                assert got.status_code == 200
                assert "x-ratelimit-limit-requests" not in got.headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "Hi"}),
        ("/v1/responses", {"input": "Hi"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 4, "model": MODEL}),
        ("/inference/v1/generate", {"token_ids": [40, 41]}),
        ("/invocations", {"prompt": "Hi"}),
    ],
)
def test_every_way_to_ask_counts(path, body):
    app = InProcess(says("Hello"), rates=Rates(requests=1))
    assert app.post(path, body).status_code == 200
    refused = app.post(path, body)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] in ("requests", "rate_limit_error")


def test_answers_are_paid_for_after_they_were_given():
    app = InProcess(says("x" * 200), rates=Rates(tokens=60))
    first = app.complete(max_tokens=200)
    assert first.status_code == 200
    assert first.headers["x-ratelimit-remaining-tokens"] != "60"
    error = error_of(app.complete(max_tokens=1), 429)
    assert (error["type"], error["code"]) == ("tokens", "rate_limit_exceeded")
    assert len(app.engine.requests) == 1


def test_anthropics_client_sees_it_as_well():
    app = app_of(says("Hello"), rates=Rates(requests=1))
    with (
        served(app) as url,
        anthropic.Anthropic(base_url=url, api_key="x", max_retries=0) as client,
    ):
        ask: Any = {"model": MODEL, "max_tokens": 4, "messages": USER}
        client.messages.create(**ask)
        with pytest.raises(anthropic.RateLimitError):
            client.messages.create(**ask)


def test_a_file_of_keys_tells_what_each_may(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(
        "plain\nsmall  requests-per-minute=3 tokens-per-minute=1000\n# a comment\nbig\tweight=2.5\n"
    )
    ring = KeyRing(("given",), str(file))
    terms = {key: ring.terms_of(ring.find(key.encode())) for key in ("plain", "small", "big")}
    assert terms["plain"] == Terms() == ring.terms_of("") == ring.terms_of(ring.find(b"given"))
    assert terms["small"] == Terms(Rates(3, 1000))
    assert terms["big"] == Terms(weight=2.5)
    file.write_text("small requests-per-minute=9\n")
    ring.reload()
    assert ring.terms_of(ring.find(b"small")) == Terms(Rates(requests=9))


@pytest.mark.parametrize(
    "rest", ["rpm=3", "weight=0", "weight=x", "requests-per-minute=-1", "weight=1 weight=2", "word"]
)
def test_a_wrong_line_is_refused_without_showing_its_key(tmp_path, rest):
    file = tmp_path / "keys"
    file.write_text(f"good\nsecret {rest}\n")
    with pytest.raises(ConfigError, match="line 2") as refused:
        KeyRing((), str(file))
    assert "secret" not in refused.value.message


# --- deadlines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["body", "header"])
def test_a_deadline_before_the_first_token_is_a_504(how):
    app = InProcess(slow(first_delay_s=60.0))
    given = {"timeout_s": 0.2} if how == "body" else {}
    headers = {"X-Request-Timeout": "0.2"} if how == "header" else {}
    body = {"prompt": "Hi", "max_tokens": 5, **given}
    for stream in (False, True):
        answer = app.post("/v1/completions", {**body, "stream": stream}, headers=headers)
        error = error_of(answer, 504)
        assert error["code"] == "deadline_exceeded"
        assert "before its first token" in error["message"]
        assert answer.headers["x-should-retry"] == "false"
    assert len(app.engine.aborted) == 2 and not app.engine.running
    metrics = app.get("/metrics").text
    assert re.search(r'deadlines_missed_total{.*stage="prefill".*} 2.0', metrics)


def test_a_deadline_in_the_middle_is_one_last_event():
    app = InProcess(slow(delay_s=0.02))
    body = {"prompt": "Hi", "max_tokens": 800, "stream": True, "timeout_s": 0.5}
    lines = [line for line in app.post("/v1/completions", body).text.split("\n\n") if line]
    assert "in the middle of its answer" in lines[-2] and lines[-1] == "data: [DONE]"
    assert sum("error" in line for line in lines) == 1
    assert 2 < len(lines) < 500
    assert len(app.engine.aborted) == 1 and not app.engine.running
    whole = app.complete(max_tokens=800, timeout_s=0.5)
    assert error_of(whole, 504)["code"] == "deadline_exceeded"


def test_a_deadline_ends_all_choices_of_a_request():
    app = InProcess(slow(delay_s=0.02))
    error_of(app.complete(max_tokens=800, n=3, timeout_s=0.3), 504)
    assert len(app.engine.aborted) == 3 and not app.engine.running


def test_a_deadline_in_the_queue():
    room = Admission(NoSeats(), AdmissionLimits())
    metrics, engine = Metrics(model_name=MODEL), says("Hello")
    app = InProcess(engine)
    app._app = create_app(engine, lambda name: text_model(), metrics, ApiSettings(), admission=room)
    error = error_of(app.complete(timeout_s=0.2), 504)
    assert "while it waited for its turn" in error["message"]
    assert not engine.requests
    assert (room.num_running, room.num_waiting) == (0, 0)


def test_a_deadline_that_is_met_changes_nothing():
    app = InProcess(says("Hello there"))
    plain = app.complete(max_tokens=20, seed=1).json()["choices"]
    assert app.complete(max_tokens=20, seed=1, timeout_s=60).json()["choices"] == plain


@pytest.mark.parametrize("value", ["0", "-1", "abc", "1e9", "100000", "inf", ""])
def test_a_wrong_deadline_is_a_400(value):
    app = InProcess(says("Hello"))
    headers = {"X-Request-Timeout": value}
    error = error_of(app.post("/v1/completions", {"prompt": "Hi"}, headers=headers), 400)
    assert error["param"] == "X-Request-Timeout"


@pytest.mark.parametrize("value", [0, -1, 86_401, "1"])
def test_a_wrong_deadline_in_the_body_is_a_400(value):
    error = error_of(InProcess(says("Hello")).complete(timeout_s=value), 400)
    assert error["param"] == "timeout_s"


# --- the waiting room -----------------------------------------------------------------------------


def test_a_client_that_leaves_the_queue_leaves_nothing():
    async def scenario():
        room = Admission(NoSeats(), AdmissionLimits())
        engine = says("Hello")
        metrics = Metrics(model_name=MODEL)
        app = create_app(engine, lambda name: text_model(), metrics, ApiSettings(), admission=room)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            body = {"prompt": "Hi", "n": 3}
            task = asyncio.create_task(client.post("/v1/completions", json=body))
            while room.num_waiting != 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert (room.num_running, room.num_waiting, room.num_waiting_tokens) == (0, 0, 0)
        assert not engine.requests

    asyncio.run(asyncio.wait_for(scenario(), 30))
