"""How long a response lives, who may see it, and what ends it."""

import asyncio
import contextlib
import http.client
import json
import time

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.choices import Piece
from common.api.generation import Usage
from common.api.message import MessageReader
from common.api.reasoning.formats import BY_NAME
from common.api.reasoning.parser import ReasoningParser
from common.api.responses.answer import Answer
from common.api.responses.envelope import Envelope
from common.api.responses.protocol import ResponseRequest
from common.api.responses.reading import AnswerReader
from common.api.responses.store import StoreLimits
from common.api.scripted import Script, ScriptedEngine
from common.api.tools.formats import HERMES
from common.errors import Overloaded, Unavailable
from tests.common.api.apps import (
    MODEL,
    InProcess,
    app_of,
    error_of,
    says,
    served,
    text_model,
    tokens,
    wait_for,
)
from tests.common.api.response_events import check_stream, parse_events

LONG = Script(tokens("x") * 1500, delay_s=0.01)
SLOW = Script(tokens("Hello there, world"), delay_s=0.03)
BACKGROUND = {"input": "Hi", "background": True}


@contextlib.contextmanager
def serving(engine, **settings):
    with (
        served(app_of(engine, **settings)) as url,
        httpx.Client(base_url=f"{url}/v1", trust_env=False, timeout=60) as client,
    ):
        yield client


def at(response_id):
    return f"responses/{response_id}"


def make(client, **body):
    answer = client.post("responses", json={**BACKGROUND, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def wait_until(client, made_id, status):
    wait_for(lambda: client.get(at(made_id)).json()["status"] == status)
    return client.get(at(made_id)).json()


def test_a_background_response_is_queued_then_runs_then_completes():
    with serving(ScriptedEngine(Script(tokens("Hello"), first_delay_s=0.1), model=MODEL)) as client:
        made = make(client)
        assert made["status"] == "queued" and made["background"] and made["output"] == []
        done = wait_until(client, made["id"], "completed")
        assert done["output"][0]["content"][0]["text"] == "Hello"
        events = parse_events(client.get(at(made["id"]), params={"stream": "true"}).text)
        assert [event["type"] for event in events[:3]] == [
            "response.created",
            "response.queued",
            "response.in_progress",
        ]
        assert check_stream(events) == done


def test_the_openai_sdk_polls_and_cancels():
    engine = ScriptedEngine(LONG, model=MODEL)
    with (
        served(app_of(engine)) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client,
    ):
        made = client.responses.create(model=MODEL, input="Hi", background=True)
        assert made.status == "queued"
        wait_for(lambda: client.responses.retrieve(made.id).status == "in_progress")
        with pytest.raises(openai.BadRequestError, match="still being made"):
            client.responses.create(model=MODEL, input="x", previous_response_id=made.id)
        cancelled = client.responses.cancel(made.id)
        assert cancelled.status == "cancelled"
        assert cancelled.model_dump()["output"][0]["status"] == "incomplete"
        assert set(cancelled.output_text) == {"x"}
        wait_for(lambda: not engine.running)
        assert len(engine.aborted) == 1
        assert client.responses.cancel(made.id) == cancelled  # again changes nothing
        assert client.responses.retrieve(made.id) == cancelled
        replay = [e.to_dict() for e in client.responses.retrieve(made.id, stream=True)]
        assert check_stream(replay)["status"] == "cancelled"


def test_a_background_response_goes_on_when_its_reader_leaves():
    engine = ScriptedEngine(SLOW, model=MODEL)
    with serving(engine) as client:
        with client.stream("POST", "responses", json={**BACKGROUND, "stream": True}) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            assert first == "event: response.created"
            data = next(line for line in lines if line.startswith("data: "))
        made_id = json.loads(data[6:])["response"]["id"]
        # Another reader joins from the second event on and sees the rest, live.
        rest = client.get(at(made_id), params={"stream": "true", "starting_after": 1})
        events = parse_events(rest.text)
        assert [event["sequence_number"] for event in events] == list(range(2, len(events) + 2))
        assert events[-1]["type"] == "response.completed"
        assert not engine.aborted
        whole = parse_events(client.get(at(made_id), params={"stream": "true"}).text)
        assert whole[2:] == events
        assert check_stream(whole)["status"] == "completed"


@pytest.mark.parametrize("stream", [False, True])
def test_hanging_up_ends_a_response_in_the_foreground(stream):
    engine = ScriptedEngine(LONG, model=MODEL)
    with served(app_of(engine)) as url:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        body = json.dumps({"input": "Hi", "stream": stream})
        connection.request("POST", "/v1/responses", body, {"Content-Type": "application/json"})
        if stream:
            response = connection.getresponse()
            assert response.read(10).startswith(b"event: ")
            response.close()
        wait_for(lambda: engine.running)
        connection.close()
        wait_for(lambda: not engine.running)
        assert len(engine.aborted) == 1


def test_one_key_never_sees_what_another_made():
    headers = {name: {"Authorization": f"Bearer {name}"} for name in ("anna", "ben")}
    with serving(says("secret"), api_keys=("anna", "ben")) as client:
        for ask in ({"input": "Hi"}, BACKGROUND):
            made = client.post("responses", json=ask, headers=headers["anna"]).json()
            wait_for(
                lambda made=made: (
                    client.get(at(made["id"]), headers=headers["anna"]).json()["status"]
                    == "completed"
                )
            )
            ours = client.get(at(made["id"]), headers=headers["anna"]).json()
            for method, path in (
                ("GET", ""),
                ("GET", "/input_items"),
                ("POST", "/cancel"),
                ("DELETE", ""),
            ):
                theirs = client.request(method, at(made["id"]) + path, headers=headers["ben"])
                assert "secret" not in theirs.text
                error_of(theirs, 404)
            for body in (
                {"input": "x", "previous_response_id": made["id"]},
                {"input": [{"type": "item_reference", "id": ours["output"][0]["id"]}]},
            ):
                assert (
                    client.post("responses", json=body, headers=headers["anna"]).status_code == 200
                )
                error_of(client.post("responses", json=body, headers=headers["ben"]), 400)
            assert client.get(at(made["id"]), headers=headers["anna"]).json() == ours


def test_runs_in_the_background_are_bounded():
    engine = ScriptedEngine(LONG, model=MODEL)
    with serving(engine, max_background=2) as client:
        first, _ = make(client), make(client)
        refused = client.post("responses", json=BACKGROUND)
        assert error_of(refused, 429)["type"] == "rate_limit_error"
        assert refused.headers["retry-after"]
        assert client.post(f"{at(first['id'])}/cancel").json()["status"] == "cancelled"
        third = make(client)
        assert client.delete(at(third["id"])).json()["deleted"]
        error_of(client.get(at(third["id"])), 404)
        wait_for(lambda: len(engine.running) == 1)  # deleting ends it, too
        make(client)


def test_only_background_runs_can_be_cancelled():
    app = InProcess(says("Hello"))
    made = app.post("/v1/responses", {"input": "Hi"}).json()
    assert "background" in error_of(app.post(f"/v1/responses/{made['id']}/cancel"), 400)["message"]


@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("queue full"), "rate_limit_exceeded"), (Unavailable("gone"), "server_error")],
)
def test_a_refusal_in_the_background_is_a_failed_response(error, code):
    with serving(ScriptedEngine(Script(error=error), model=MODEL)) as client:
        failed = wait_until(client, make(client)["id"], "failed")
        assert failed["error"] == {"code": code, "message": error.message}
        events = parse_events(client.get(at(failed["id"]), params={"stream": "true"}).text)
        assert check_stream(events) == failed


def test_a_bad_request_in_the_background_is_refused_at_once():
    app = InProcess(says("Hello"))
    error_of(app.post("/v1/responses", {**BACKGROUND, "max_output_tokens": 99999}), 400)
    error_of(app.post("/v1/responses", {**BACKGROUND, "model": "other"}), 404)
    assert not app.engine.requests


def test_shutdown_ends_runs_in_the_background():
    engine = ScriptedEngine(LONG, model=MODEL)
    app = app_of(engine)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with app.router.lifespan_context(app):
                made = (await client.post("/v1/responses", json=BACKGROUND)).json()
                await asyncio.to_thread(wait_for, lambda: engine.running)
            assert not engine.running and len(engine.aborted) == 1
            found = (await client.get(f"/v1/responses/{made['id']}")).json()
            assert found["status"] == "cancelled"
            error_of(await client.post("/v1/responses", json=BACKGROUND), 503)

    asyncio.run(run())


def test_a_run_cancelled_before_its_first_step_ends_too():
    engine = ScriptedEngine(LONG, model=MODEL)
    app = app_of(engine)

    async def run():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            async with app.router.lifespan_context(app):
                made = (await client.post("/v1/responses", json=BACKGROUND)).json()
            path = f"/v1/responses/{made['id']}"
            assert (await client.get(path)).json()["status"] == "cancelled"
            replay = await client.get(path, params={"stream": "true"})
            assert check_stream(parse_events(replay.text))["status"] == "cancelled"

    asyncio.run(run())


def test_what_is_kept_is_bounded_in_count_and_in_bytes():
    app = InProcess(says("Hello"), stored_responses=StoreLimits(count=2))
    ids = [app.post("/v1/responses", {"input": str(n)}).json()["id"] for n in range(3)]
    found = [app.get(f"/v1/responses/{made}").status_code for made in ids]
    assert found == [404, 200, 200]
    app = InProcess(says("Hello"), stored_responses=StoreLimits(size_bytes=30_000))
    ids = [app.post("/v1/responses", {"input": "x" * 500}).json()["id"] for n in range(8)]
    found = [app.get(f"/v1/responses/{made}").status_code for made in ids]
    assert found[0] == 404 and found[-1] == 200
    assert found == sorted(found, reverse=True)
    tiny = InProcess(says("Hello"), stored_responses=StoreLimits(size_bytes=100))
    made = tiny.post("/v1/responses", {"input": "x"})
    assert made.json()["status"] == "completed"  # answered, though too big to be kept
    assert tiny.get(f"/v1/responses/{made.json()['id']}").status_code == 404


def test_what_is_kept_grows_old():
    found = []
    for age_s in (3600.0, 0.0):  # the store itself is tested with a hand-moved clock
        app = InProcess(says("Hello"), stored_responses=StoreLimits(age_s=age_s))
        made = app.post("/v1/responses", {"input": "x"}).json()
        time.sleep(0.01)
        found.append(app.get(f"/v1/responses/{made['id']}").status_code)
    assert found == [200, 404]


@pytest.mark.parametrize("query", ["stream=maybe", "stream=true&starting_after=x"])
def test_queries_are_checked(query):
    app = InProcess(says("Hello"))
    made = app.post("/v1/responses", {"input": "x"}).json()
    error_of(app.get(f"/v1/responses/{made['id']}?{query}"), 400)


# --- the state machine, without a server ----------------------------------------------------------

CALL = '<tool_call>{"name": "f", "arguments": {"a": [1, 2]}}</tool_call>'
TEXTS = st.lists(
    st.sampled_from(["Hello ", "wörld 👍🏽", CALL, "\n", "<tool", "<think>", "</think>", ""]),
    max_size=6,
)


def pieces_of(text, cuts, reason):
    ends = sorted({min(cut, len(text)) for cut in cuts} | {len(text)})
    starts = [0, *ends[:-1]]
    cut = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    return [
        Piece(0, part, finish_reason=reason if n == len(cut) - 1 else None)
        for n, part in enumerate(cut)
    ]


def answer_of(in_pieces, with_tools, with_reasoning=False):
    ask = ResponseRequest.model_validate({"input": "x"})
    calls = HERMES.parser(frozenset({"f"})) if with_tools else None
    thoughts = ReasoningParser(BY_NAME["qwen3"], is_open=False) if with_reasoning else None
    reader = AnswerReader(text_model().vocabulary, MessageReader(thoughts, calls), None)
    return Answer(Envelope("resp_1", 1, "m", ask, {}), Usage(3), reader, in_pieces=in_pieces)


def shown(final):
    """What the items say, without ids."""
    return [
        (item["type"], item["status"], item.get("content") or item.get("arguments"))
        for item in final["output"]
    ]


@settings(max_examples=60)
@given(
    TEXTS,
    st.lists(st.integers(0, 80), max_size=8),
    st.booleans(),
    st.booleans(),
    st.sampled_from("sl"),
)
def test_any_cut_tells_the_same_story(texts, cuts, with_tools, with_reasoning, reason):
    text, reason = "".join(texts), {"s": "stop", "l": "length"}[reason]
    stories = []
    for in_pieces, where in ((False, cuts), (True, cuts), (True, [])):
        answer = answer_of(in_pieces, with_tools, with_reasoning)
        data = answer.begin()
        for piece in pieces_of(text, where, reason):
            data += answer.accept(piece, 5)
        events = parse_events(data.decode())
        assert data == b"".join(answer.log)
        stories.append(shown(check_stream(events)))
        assert events[-1]["response"]["status"] == (
            "completed" if reason == "stop" else "incomplete"
        )
    assert stories[0] == stories[1] == stories[2]


@settings(max_examples=40)
@given(TEXTS, st.integers(0, 8), st.sampled_from(["fail", "cancel"]), st.booleans())
def test_it_may_end_at_any_point(texts, num_pieces, end, was_queued):
    answer = answer_of(True, True)
    data = answer.queue() if was_queued else b""
    if num_pieces:
        data += answer.begin()
    for text in texts[:num_pieces]:
        data += answer.accept(Piece(0, text), 5)
    data += answer.fail(Unavailable("gone")) if end == "fail" else answer.cancel()
    events = parse_events(data.decode())
    if was_queued or num_pieces:
        final = check_stream(events)
        assert final["status"] == ("failed" if end == "fail" else "cancelled")
    with pytest.raises(AssertionError):
        answer.cancel()
