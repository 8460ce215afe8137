"""vLLM's extensions that are about the form of an answer, and its headers."""

import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.api.repetition import RepetitionWatch
from common.api.scripted import Script, ScriptedEngine
from common.errors import InstanceLost
from tests.common.api.apps import MODEL, USER, InProcess, error_of, events, says, text_model, tokens

ANSWER = "Hello there, naïve 👍🏽 world! 日本語"
APP = InProcess(says(ANSWER))
HISTORY = [*USER, {"role": "assistant", "content": "Well, "}]


def joined(chunks):
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)


# --- echo, prompt text ---------------------------------------------------------------------------


def test_chat_echoes_the_last_assistant_message():
    body = {"messages": HISTORY, "echo": True}
    whole = APP.chat(**body).json()["choices"][0]["message"]["content"]
    assert whole == "Well, " + ANSWER
    assert joined(events(APP.chat(**body, stream=True))) == whole


def test_chat_echoes_nobody_elses_message():
    assert APP.chat(echo=True).json()["choices"][0]["message"]["content"] == ANSWER


def test_the_prompt_as_text():
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert APP.chat(return_prompt_text=True).json()["prompt_text"] == prompt
    chunks = events(APP.chat(return_prompt_text=True, stream=True))
    assert [c.get("prompt_text") for c in chunks][:2] == [prompt, None]
    for given_prompt in ("Hi there", list(tokens("Hi there"))):
        body = {"prompt": given_prompt, "return_prompt_text": True}
        assert APP.complete(**body).json()["choices"][0]["prompt_text"] == "Hi there"
        first, *rest = events(APP.complete(**body, stream=True))
        assert first["choices"][0]["prompt_text"] == "Hi there"
        assert not any("prompt_text" in c["choices"][0] for c in rest)


def test_a_truncated_prompt_is_shown_as_it_was_given():
    body = {"prompt": "one two three", "truncate_prompt_tokens": 2, "return_prompt_text": True}
    shown = APP.complete(**body).json()["choices"][0]["prompt_text"]
    assert shown == text_model().decode(APP.engine.requests[-1].prompt_token_ids)
    assert shown != "one two three"


# --- stream_interval -----------------------------------------------------------------------------


@pytest.mark.parametrize("interval", [1, 2, 3, 100])
def test_a_stream_in_bigger_steps_says_the_same(interval):
    options = {"logprobs": True, "return_token_ids": True, "max_tokens": 64}
    whole = APP.chat(**options).json()["choices"][0]
    chunks = events(APP.chat(**options, stream=True, stream_interval=interval))
    assert joined(chunks) == whole["message"]["content"]
    ids = [c["choices"][0].get("token_ids") or [] for c in chunks]
    assert sum(ids, []) == whole["token_ids"]
    given_ids = [len(each) for each in ids if each]
    assert given_ids[0] == 1
    assert all(count == interval for count in given_ids[1:-1])
    entries = [c["choices"][0]["logprobs"] for c in chunks if c["choices"][0]["logprobs"]]
    assert sum((e["content"] for e in entries), []) == whole["logprobs"]["content"]


def test_what_was_held_back_comes_before_an_error():
    script = Script(tokens(ANSWER)[:4], error=InstanceLost("gone"))
    app = InProcess(ScriptedEngine(script, model=MODEL))
    body = {"prompt": "Hi", "stream": True, "stream_interval": 100}
    found = events(app.post("/v1/completions", body))
    assert "error" in found[-1]
    text = "".join(c["choices"][0]["text"] for c in found[:-1])
    assert text and ANSWER.startswith(text)
    assert text == text_model().decode(tokens(ANSWER)[:4])


# --- repetition_detection ------------------------------------------------------------------------


def repeats(ids, low, high, count):
    """The definition, tried out on every pattern size."""
    return any(
        len(ids) >= size * count
        and all(ids[-size * count + i] == ids[-size + i % size] for i in range(size * count))
        for size in range(low, high + 1)
    )


@given(
    st.lists(st.integers(0, 2), max_size=40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(2, 4),
)
def test_repetition_is_found_at_once(ids, low, more, count):
    watch = RepetitionWatch(low, low + more, count)
    for number, token_id in enumerate(ids, 1):
        watch.push(token_id)
        if repeats(ids[:number], low, low + more, count):
            assert watch.found
            return
        assert not watch.found


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeating_answer_ends(stream):
    engine = says("never " + "again " * 50, tokens_per_event=3)
    app = InProcess(engine)
    body = {"repetition_detection": {"max_pattern_size": 8, "min_count": 4}, "stream": stream}
    answer = app.chat(**body, return_token_ids=True)
    if stream:
        chunks = events(answer)
        choice = chunks[-1]["choices"][0]
        ids = sum((c["choices"][0].get("token_ids") or [] for c in chunks), [])
    else:
        choice = answer.json()["choices"][0]
        ids = choice["token_ids"]
    assert choice["finish_reason"] == "repetition"
    assert repeats(ids, 1, 8, 4) and not repeats(ids[:-1], 1, 8, 4)
    assert len(engine.aborted) == 1 and not engine.running


@pytest.mark.parametrize(
    "value",
    [
        {"max_pattern_size": 4, "min_pattern_size": 5},
        {"max_pattern_size": 1000},
        {"max_pattern_size": 4, "min_count": 1},
        7,
    ],
)
def test_repetition_bounds(value):
    error = error_of(APP.chat(repetition_detection=value), 400)
    assert error["param"].startswith("repetition_detection")


def test_repetition_detection_may_be_off():
    body = {"repetition_detection": {"max_pattern_size": 0}}
    answer = InProcess(says("aaaa " * 20)).chat(**body)
    assert answer.json()["choices"][0]["finish_reason"] == "stop"


# --- logprob_token_ids ----------------------------------------------------------------------------


def test_logprobs_of_chosen_tokens():
    asked = {"logprob_token_ids": [70, 65], "max_tokens": 3}
    chat = APP.chat(**asked, logprobs=True, top_logprobs=1, return_tokens_as_token_ids=True)
    for entry in chat.json()["choices"][0]["logprobs"]["content"]:
        assert [top["token"] for top in entry["top_logprobs"]] == ["token_id:70", "token_id:65"]
    text = APP.complete(**asked, logprobs=1, return_tokens_as_token_ids=True)
    for top in text.json()["choices"][0]["logprobs"]["top_logprobs"]:
        assert {"token_id:70", "token_id:65"} <= set(top)
    sampling = {"logprobs": 0, **asked}
    body = {"token_ids": [1], "sampling_params": sampling}
    content = APP.post("/inference/v1/generate", body).json()["choices"][0]["logprobs"]["content"]
    assert [top["token_id"] for top in content[0]["top_logprobs"]] == [70, 65]


def test_chosen_tokens_must_exist_and_be_asked_for():
    for body in (
        {"logprob_token_ids": [1]},
        {"logprob_token_ids": [10**6], "logprobs": True},
        {"logprob_token_ids": [], "logprobs": True},
        {"logprob_token_ids": list(range(129)), "logprobs": True},
    ):
        assert error_of(APP.chat(**body), 400)["param"] == "logprob_token_ids"


# --- headers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header", "expected"),
    [({}, "7", 7), ({"priority": -3}, "7", -3), ({"priority": 0}, "7", 0), ({}, None, 0)],
)
def test_priority(body, header, expected):
    headers = {"X-Vllm-Priority": header} if header else {}
    APP.post("/v1/chat/completions", {"messages": USER, **body}, headers=headers)
    assert APP.engine.requests[-1].priority == expected


@pytest.mark.parametrize("value", ["high", "", "1.5", "9999999999", "1 2"])
def test_a_wrong_priority_is_refused(value):
    headers = {"X-Vllm-Priority": value}
    response = APP.post("/v1/completions", {"prompt": "Hi"}, headers=headers)
    assert error_of(response, 400)["param"] == "X-Vllm-Priority"


def test_a_session_in_the_header_or_in_the_body():
    for headers, body, expected in (
        ({"X-Session-ID": "head"}, {"session_id": "body"}, "head"),
        ({}, {"session_id": "bo\ndy"}, "body"),
        ({}, {}, ""),
    ):
        APP.post("/v1/completions", {"prompt": "Hi", **body}, headers=headers)
        assert APP.engine.requests[-1].session_id == expected


def test_a_session_is_a_label(caplog):
    app = InProcess(says("x"), access_log="json")
    with caplog.at_level(logging.INFO, "xpyd.access"):
        app.post("/v1/completions", {"prompt": "Hi"}, headers={"X-Session-ID": "s 1"})
    assert json.loads(caplog.records[-1].getMessage())["session_id"] == "s1"


def test_what_openai_clients_send_along_is_accepted():
    along = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "verbosity": "low",
        "session_id": "s",
    }
    assert APP.chat(**along).status_code == 200
    del along["verbosity"]
    assert APP.complete(**along).status_code == 200
    options = {"include_obfuscation": True, "include_usage": True}
    assert joined(events(APP.chat(stream=True, stream_options=options))[:-1]) == ANSWER
