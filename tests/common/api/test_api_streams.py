"""Streams: the form of every event, and that their sum is the whole answer."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.api.scripted import Script, ScriptedEngine
from tests.common.api.apps import MODEL, InProcess, events, says, text_model, tokens

TOOLS = [{"type": "function", "function": {"name": "f"}}]
TEXT = 'Hello 👍🏽 world STOP <tool_call>{"name": "f", "arguments": {"é": 1}}</tool_call> é'


def joined_chat(chunks, number=0):
    """One choice of a stream as the message of a whole answer."""
    choices = [c for chunk in chunks for c in chunk["choices"] if c["index"] == number]
    deltas = [choice["delta"] for choice in choices]
    content = "".join(delta.get("content", "") for delta in deltas)
    message = {"role": deltas[0]["role"], "content": content, "refusal": None}
    if calls := joined_calls(call for delta in deltas for call in delta.get("tool_calls", ())):
        message |= {"content": content or None, "tool_calls": calls}
    logprobs = [e for c in choices if c["logprobs"] for e in c["logprobs"]["content"]]
    [finish] = [(c["finish_reason"], c["stop_reason"]) for c in choices if c["finish_reason"]]
    return message, logprobs, finish


def joined_calls(deltas):
    calls: list[dict[str, Any]] = []
    for delta in deltas:
        if "id" in delta:
            assert delta["index"] == len(calls)
            calls.append({"type": "function", "function": {**delta["function"]}})
        else:
            calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]
    return calls


def whole_chat(body, number=0):
    choice = body["choices"][number]
    message = choice["message"]
    for call in message.get("tool_calls", ()):
        assert call.pop("id").startswith("call_")
    logprobs = (choice["logprobs"] or {"content": []})["content"]
    return message, logprobs, (choice["finish_reason"], choice["stop_reason"])


@given(
    ids=st.lists(st.integers(0, 419), min_size=1, max_size=20).map(tuple)
    | st.text(max_size=20).map(tokens).filter(bool)
    | st.just(tokens(TEXT)),
    per_event=st.integers(1, 5),
    stop=st.sampled_from([None, "STOP", ["👍", " w"], ["e"]]),
    tools=st.sampled_from([None, TOOLS]),
    logprobs=st.booleans(),
    max_tokens=st.sampled_from([None, 1, 3]),
    include_stop=st.booleans(),
)
@settings(max_examples=60)
def test_chat_deltas_add_up_to_the_whole_answer(
    ids, per_event, stop, tools, logprobs, max_tokens, include_stop
):
    app = InProcess(ScriptedEngine(Script(ids, tokens_per_event=per_event), model=MODEL))
    ask = {
        "stop": stop,
        "tools": tools,
        "logprobs": logprobs,
        "max_tokens": max_tokens,
        "include_stop_str_in_output": include_stop,
    }
    whole = app.chat(**ask).json()
    chunks = events(app.chat(**ask, stream=True, stream_options={"include_usage": True}))
    assert joined_chat(chunks[:-1]) == whole_chat(whole)
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-1]["choices"] == []


@given(
    ids=st.lists(st.integers(0, 419), min_size=1, max_size=16).map(tuple)
    | st.just(tokens("Hello 👍🏽 world")),
    per_event=st.integers(1, 4),
    stop=st.sampled_from([None, ["e", "👍"]]),
    echo=st.booleans(),
    logprobs=st.sampled_from([None, 0, 2]),
    max_tokens=st.sampled_from([None, 0, 3]),
)
@settings(max_examples=40)
def test_completion_deltas_add_up_to_the_whole_answer(
    ids, per_event, stop, echo, logprobs, max_tokens
):
    app = InProcess(ScriptedEngine(Script(ids, tokens_per_event=per_event), model=MODEL))
    echo = echo or max_tokens == 0
    ask = {
        "prompt": ["Hi é", "b"],
        "stop": stop,
        "echo": echo,
        "logprobs": logprobs,
        "max_tokens": max_tokens,
        "return_token_ids": echo,
    }
    whole = app.complete(**ask).json()
    *chunks, last = events(app.complete(**ask, stream=True, stream_options={"include_usage": True}))
    assert last["usage"] == whole["usage"]
    for number in (0, 1):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == number]
        choice = whole["choices"][number]
        assert "".join(c["text"] for c in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]
        if echo:
            assert [i for c in mine for i in c["token_ids"]] == choice["token_ids"]
        if logprobs is not None:
            for name in ("tokens", "token_logprobs", "text_offset"):
                joined = [entry for c in mine for entry in c["logprobs"][name]]
                assert joined == choice["logprobs"][name]


def test_the_form_of_chat_chunks():
    app = InProcess(says("Hello world"))
    chunks = events(app.chat(stream=True, n=2, model=MODEL))
    openings = [c["choices"][0] for c in chunks[:2]]
    assert [c["index"] for c in openings] == [0, 1]
    assert all(c["delta"] == {"role": "assistant", "content": ""} for c in openings)
    for chunk in chunks:
        assert chunk["object"] == "chat.completion.chunk"
        assert chunk["id"].startswith("chatcmpl-") and chunk["id"] == chunks[0]["id"]
        assert (chunk["created"], chunk["model"]) == (chunks[0]["created"], MODEL)
        assert len(chunk["choices"]) == 1
        assert set(chunk["choices"][0]) >= {"index", "delta", "logprobs", "finish_reason"}
        assert "usage" not in chunk
    finished = [c["choices"][0]["index"] for c in chunks if c["choices"][0]["finish_reason"]]
    assert sorted(finished) == [0, 1]


def test_the_form_of_completion_chunks():
    chunks = events(InProcess(says("Hello world")).complete(stream=True))
    for chunk in chunks:
        assert chunk["object"] == "text_completion"
        assert set(chunk["choices"][0]) >= {"index", "text", "logprobs", "finish_reason"}


def test_usage_in_every_chunk():
    options = {"continuous_usage_stats": True, "include_usage": True}
    chunks = events(InProcess(says("Hello world")).chat(stream=True, stream_options=options))
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[-1] == len(tokens("Hello world"))


def test_token_ids_in_a_stream():
    chunks = events(InProcess(says("Hello 👍🏽")).chat(stream=True, return_token_ids=True))
    joined = [i for c in chunks for i in c["choices"][0].get("token_ids", ())]
    assert tuple(joined) == tokens("Hello 👍🏽")
    prompt = text_model().encode("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert chunks[0]["prompt_token_ids"] == prompt


@pytest.mark.parametrize("per_event", [1, 3, 50])
def test_a_stop_string_stops_the_engine_and_the_count(per_event):
    engine = says("one two STOP three four", tokens_per_event=per_event)
    app = InProcess(engine)
    body = app.chat(stop=["STOP"]).json()
    assert body["choices"][0]["message"]["content"] == "one two "
    assert body["choices"][0]["stop_reason"] == "STOP"
    assert body["usage"]["completion_tokens"] == len(tokens("one two STOP"))
    assert not engine.running


def test_stop_strings_wait_for_min_tokens():
    app = InProcess(says("a b a b a b"))
    text = app.complete(stop=" b", min_tokens=3).json()["choices"][0]["text"]
    assert text == "a b a"


def test_refusals_wait_for_no_status_line():
    """An engine error before the first token is a status, also when a stream was asked for."""
    from common.errors import Overloaded

    app = InProcess(ScriptedEngine(Script(error=Overloaded("full")), model=MODEL))
    response = app.chat(stream=True)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"


def test_a_failing_choice_ends_the_others():
    from common.errors import InstanceLost

    def script(request):
        if request.request_id.endswith("-1"):
            return Script(tokens("ab"), error=InstanceLost("gone"))
        return Script(tokens("x") * 500, delay_s=0.01)

    engine = ScriptedEngine(script, model=MODEL)
    response = InProcess(engine).chat(stream=True, n=3)
    assert '"code":"instance_lost"' in response.text
    assert response.text.endswith("data: [DONE]\n\n")
    assert not engine.running
    assert len(engine.aborted) == 2


def test_our_own_failure_tells_nothing_of_our_insides(caplog):
    def script(request):
        raise RuntimeError("secret /etc/path")

    app = InProcess(ScriptedEngine(script, model=MODEL))
    for stream in (False, True):
        response = app.chat(stream=stream)
        assert response.status_code == 500
        assert "secret" not in response.text
        assert response.json()["error"]["type"] == "server_error"
    assert "secret" in caplog.text
