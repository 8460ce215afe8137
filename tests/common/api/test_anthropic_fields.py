"""Fields and blocks of /v1/messages: what they do to the request, and what is refused by name."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer

from common.text import TextModel
from tests.common.api.anthropic_client import TOOLS, USER
from tests.common.api.apps import MODEL, InProcess, says, text_model, tokens
from tests.common.made_tokenizers import byte_level

APP = InProcess(says("Hello"))


def post(app=APP, **body):
    given = {"max_tokens": 20, "messages": USER, **body}
    return app.post("/v1/messages", {k: v for k, v in given.items() if v is not ...})


def prompt_of(**body):
    response = post(**body)
    assert response.status_code == 200, response.text
    return text_model().decode(APP.engine.requests[-1].prompt_token_ids)


def refusal(response, status=400, kind="invalid_request_error"):
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"type", "error"} and set(body["error"]) == {"type", "message"}
    assert body["error"]["type"] == kind
    return body["error"]["message"]


# --- the conversation ----------------------------------------------------------------------------


def test_system_as_string_and_as_blocks():
    cached = {"type": "ephemeral"}
    blocks = [
        {"type": "text", "text": "One.", "cache_control": cached},
        {"type": "text", "text": "Two."},
    ]
    assert prompt_of(system=blocks) == prompt_of(system="One.\nTwo.")
    assert prompt_of(system="Be brief.").startswith("<|im_start|>system\nBe brief.<|im_end|>")


def test_results_of_tools_are_messages_of_their_own():
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "get_weather", "input": {"city": "Rom"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "t1",
                    "content": [{"type": "text", "text": "4 °C"}],
                },
                {"type": "tool_result", "tool_use_id": "t2", "is_error": True, "content": "broken"},
                {"type": "tool_result", "tool_use_id": "t3"},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    prompt = prompt_of(messages=messages, tools=TOOLS)
    turns = [turn.partition("<|im_end|>")[0] for turn in prompt.split("<|im_start|>")[1:]]
    assert turns[1].startswith("assistant\nI look.")
    assert '"get_weather"' in turns[1] and '"Rom"' in turns[1]
    assert turns[2:] == [
        "tool\n4 °C",
        "tool\nError: broken",
        "tool\n",
        "user\nSo?",
        "assistant\n",
    ]


def test_an_answer_that_is_begun_is_gone_on_with():
    for content in ("The capital is", [{"type": "text", "text": "The capital is"}]):
        messages = [*USER, {"role": "assistant", "content": content}]
        assert prompt_of(messages=messages).endswith("<|im_start|>assistant\nThe capital is")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([{"type": "image", "source": {"type": "url", "url": "http://x"}}], "image"),
        ([{"type": "text", "text": "a"}, {"type": "document", "source": {}}], "content.1"),
        ([{"type": "tool_use", "id": "x", "name": "f", "input": {}}], "tool_use"),
        ([{"type": "text"}], "content.0.text"),
        ([{"text": "x"}], "type"),
        (["x"], "messages"),
        (7, "messages"),
        ([{"type": "tool_result", "content": "x"}], "tool_use_id"),
        ([{"type": "tool_result", "tool_use_id": "t", "content": [{"type": "image"}]}], "image"),
    ],
)
def test_blocks_that_cannot_be_read(content, named):
    assert named in refusal(post(messages=[{"role": "user", "content": content}]))


def test_blocks_of_the_assistant():
    for block in (
        {"type": "redacted_thinking", "data": "x"},
        {"type": "tool_use", "id": "x", "name": "f", "input": "{}"},
        {"type": "server_tool_use", "id": "x", "name": "web_search", "input": {}},
    ):
        messages = [*USER, {"role": "assistant", "content": [block]}, *USER]
        assert "messages.1.content.0" in refusal(post(messages=messages))


# --- sampling ------------------------------------------------------------------------------------


def test_sampling_fields():
    post(temperature=0.5, top_p=0.9, top_k=40, stop_sequences=["x"])
    sampling = APP.engine.requests[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 40)
    assert sampling.max_tokens == 20


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"top_p": 0}, "top_p"),
        ({"stream": "yes"}, "stream"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "f"}]}, "input_schema"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "name"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
        ({"thinking": {"type": "enabled"}}, "budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "budget_tokens"),
        ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, "budget_tokens"),
        ({"max_tokens": 900, "thinking": {"type": "enabled", "budget_tokens": 500}}, "thinking"),
        ({"output_config": {"format": {"type": "regex"}}}, "output_config"),
        ({"output_config": {"effort": "huge"}}, "output_config"),
        ({"mcp_servers": [{"url": "http://x"}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"kv_transfer_params": {"x": 1}}, "kv_transfer_params"),
    ],
)
def test_refused_by_name(body, named):
    before = len(APP.engine.requests)
    assert named in refusal(post(**body))
    assert len(APP.engine.requests) == before


def test_what_comes_along_is_accepted():
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "a,b"}
    body = {
        "max_tokens": 9,
        "messages": USER,
        "metadata": {"user_id": "u"},
        "service_tier": "auto",
        "cache_control": {"type": "ephemeral"},
        "thinking": {"type": "disabled"},
        "unknown": 1,
    }
    assert APP.post("/v1/messages", body, headers=headers).status_code == 200


def test_an_absent_model_is_the_served_one():
    assert post().json()["model"] == MODEL


# --- tools, formats and thinking -----------------------------------------------------------------


def constraint(**body):
    response = post(**body)
    assert response.status_code == 200, response.text
    found = APP.engine.requests[-1].sampling.constraint
    return found and (found.kind, json.loads(found.text))


def test_tools_are_shown_as_functions():
    prompt = prompt_of(tools=TOOLS)
    shown = json.loads(prompt.partition("[tools]")[2].partition("<|im_start|>")[0])
    assert shown == [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a city.",
                "parameters": TOOLS[0]["input_schema"],
            },
        }
    ]


def test_auto_and_none_leave_the_model_free():
    for choice in ({"type": "auto"}, {"type": "none"}):
        assert constraint(tools=TOOLS, tool_choice=choice) is None


def test_calls_that_are_demanded_are_constrained():
    other = {"name": "other", "input_schema": {"type": "object"}}
    kind, tag = constraint(tools=[*TOOLS, other], tool_choice={"type": "any"})
    assert kind == "structural_tag"
    assert "get_weather" in json.dumps(tag) and "other" in json.dumps(tag)
    choice = {"type": "tool", "name": "get_weather"}
    kind, tag = constraint(tools=[*TOOLS, other], tool_choice=choice)
    assert "get_weather" in json.dumps(tag) and "other" not in json.dumps(tag)


def test_calls_stay_text_where_none_are_wanted():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    app = InProcess(says(call))
    body = post(app, tools=TOOLS, tool_choice={"type": "none"}, max_tokens=99).json()
    assert body["content"] == [{"type": "text", "text": call}]
    assert body["stop_reason"] == "end_turn"


def test_output_format():
    schema = {"type": "object", "properties": {"x": {"type": "integer"}}}
    wanted = {"format": {"type": "json_schema", "schema": schema}}
    assert constraint(output_config=wanted) == ("json_schema", schema)


def test_a_call_cut_short_says_so():
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
    limit = len(tokens(call.partition("Zürich")[0]))
    body = post(InProcess(says(call)), tools=TOOLS, max_tokens=limit).json()
    assert body["stop_reason"] == "max_tokens"
    (block,) = body["content"]
    assert (block["type"], block["input"]) == ("tool_use", {})


THINKER = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def thinker(monkeypatch, answer, marks=()):
    app = InProcess(says(answer))
    tokenizer = Tokenizer.from_str(byte_level().to_str())  # a copy: others share that one
    tokenizer.add_special_tokens([AddedToken(mark, special=True) for mark in marks])
    made = TextModel(tokenizer, templates={"default": THINKER})
    monkeypatch.setattr("tests.common.api.apps.text_model", lambda: made)
    return app, made


def test_thinking_is_a_block_of_its_own(monkeypatch):
    app, _ = thinker(monkeypatch, "<think>\nLet me see.\n</think>\n\nFour.")
    body = post(app, thinking={"type": "adaptive"}, max_tokens=99).json()
    assert body["content"] == [
        {"type": "thinking", "thinking": "Let me see.", "signature": ""},
        {"type": "text", "text": "Four."},
    ]
    streamed = post(app, stream=True, max_tokens=99).text
    deltas = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: ")]
    thoughts = [
        e["delta"].get("thinking", "") for e in deltas if e["type"] == "content_block_delta"
    ]
    assert "".join(thoughts) == "Let me see."
    assert "[DONE]" not in streamed


def test_thinking_may_be_switched_off(monkeypatch):
    app, made = thinker(monkeypatch, "Four.")
    post(app, thinking={"type": "disabled"})
    assert made.decode(app.engine.requests[-1].prompt_token_ids).endswith("<think></think>")
    post(app, thinking={"type": "adaptive"})
    assert made.decode(app.engine.requests[-1].prompt_token_ids).endswith("assistant:")


def test_a_budget_of_thinking_is_kept(monkeypatch):
    app, _ = thinker(monkeypatch, "Four.", marks=("<think>", "</think>"))
    post(app, thinking={"type": "enabled", "budget_tokens": 64}, max_tokens=99)
    constraint = app.engine.requests[-1].sampling.constraint
    assert constraint.field == "thinking.budget_tokens"
    whole, _ = json.loads(constraint.text)["format"]["elements"]
    assert whole["elements"][0]["content"] == {"type": "any_text", "max_tokens": 64}


# --- count_tokens --------------------------------------------------------------------------------


def test_count_tokens_refuses_what_create_refuses():
    path = "/v1/messages/count_tokens"
    assert APP.post(path, {"messages": USER}).json().keys() == {"input_tokens"}
    bad = {"messages": [{"role": "user", "content": [{"type": "image"}]}]}
    assert "image" in refusal(APP.post(path, bad))
    refusal(APP.post(path, {"messages": USER, "model": "other"}), 404, "not_found_error")


def test_paths_answer_in_anthropics_shape():
    keyed = InProcess(says("x"), api_keys=("k",))
    refusal(keyed.post("/v1/messages", {}), 401, "authentication_error")
    refusal(APP.post("/v1/messages/batches", {}), 404, "not_found_error")
    response = APP.get("/v1/messages")
    refusal(response, 405)
    assert response.headers["allow"] == "POST"
    headers = {"Content-Type": "text/plain"}
    refusal(APP.request("POST", "/v1/messages", content=b"x", headers=headers), 415)
