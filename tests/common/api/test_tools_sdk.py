"""Tools through the official SDK, streamed and not, over models of several formats."""

import json

import openai
import pytest

from tests.common.api.apps import MODEL, TEMPLATE, USER
from tests.common.api.speakers import (
    DEEPSEEK,
    NOW,
    WEATHER,
    constraint_of,
    prompt_of,
    speaking,
    streamed,
    whole,
)
from tests.common.api.tool_texts import NASTY, PARIS, TWO, TWO_CALLS

F = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOOLS = [WEATHER, F, NOW]
HERMES = TWO["hermes"][0]
NAMED = {"type": "function", "function": {"name": "get_weather"}}

# format → (clue for the template, special tokens of the tokenizer)
MODELS = {
    "hermes": ("<tool_call>", ()),
    "llama3_json": ("<|python_tag|>", ("<|python_tag|>",)),
    "mistral": ("[ARGS]", ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")),
    "mistral_list": ("", ("[TOOL_CALLS]",)),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>", ()),
}


@pytest.mark.parametrize("name", MODELS)
def test_calls_are_found_by_what_the_template_says(name):
    clue, special = MODELS[name]
    template = TEMPLATE + "{# " + clue + " #}"
    with speaking(TWO[name][0], template, special) as (client, _):
        found = whole(client, messages=USER, tools=TOOLS)
        assert found["tool_calls"] == [list(call) for call in TWO_CALLS]
        assert found["finish_reason"] == "tool_calls"
        assert streamed(client, messages=USER, tools=TOOLS) == found


def test_text_calls_and_ids():
    with speaking(f"Let me see.\n\n{HERMES}") as (client, _):
        message = (
            client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS)
            .choices[0]
            .message
        )
        assert message.content == "Let me see."
        assert len({call.id for call in message.tool_calls}) == 2
        with client.chat.completions.stream(model=MODEL, messages=USER, tools=TOOLS) as stream:
            for _ in stream:
                pass
            helper = stream.get_final_completion().choices[0].message
    assert [call.function.arguments for call in helper.tool_calls] == [PARIS, NASTY]
    assert helper.content == "Let me see."


def test_content_is_null_when_only_tools_were_called():
    with speaking(HERMES) as (client, _):
        answer = client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS)
        assert answer.choices[0].message.content is None


def test_a_broken_call_is_text():
    broken = 'Well: <tool_call>{"name": "f", "arg</tool_call> <tool_call>'
    with speaking(broken) as (client, _):
        found = whole(client, messages=USER, tools=TOOLS)
        assert found["content"] == broken
        assert found["finish_reason"] == "stop"
        assert streamed(client, messages=USER, tools=TOOLS) == found


@pytest.mark.parametrize(
    ("choice", "reason", "is_held"),
    [
        (None, "tool_calls", False),
        ("auto", "tool_calls", False),
        ("required", "tool_calls", True),
        (NAMED, "stop", True),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            "tool_calls",
            True,
        ),
    ],
)
def test_tool_choice(choice, reason, is_held):
    asked = {} if choice is None else {"tool_choice": choice}
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
    with speaking(call) as (client, engine):
        found = whole(client, messages=USER, tools=TOOLS, **asked)
        assert found["tool_calls"] == [["get_weather", PARIS]]
        assert found["finish_reason"] == reason
        assert (constraint_of(engine) is not None) == is_held
        assert streamed(client, messages=USER, tools=TOOLS, **asked) == found


def test_none_leaves_calls_as_text():
    with speaking(HERMES) as (client, engine):
        found = whole(client, messages=USER, tools=TOOLS, tool_choice="none")
        assert (found["content"], found["tool_calls"]) == (HERMES, [])
        assert found["finish_reason"] == "stop"
        assert constraint_of(engine) is None


def test_only_one_call_if_the_client_takes_one():
    with speaking(HERMES) as (client, engine):
        found = whole(client, messages=USER, tools=TOOLS, parallel_tool_calls=False)
        assert found["tool_calls"] == [["get_weather", PARIS]]
        whole(client, messages=USER, tools=TOOLS, parallel_tool_calls=False, tool_choice="required")
        assert constraint_of(engine)["stop_after_first"] is True


def test_strict_tools_are_enforced():
    strict = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    with speaking("Sunny.") as (client, engine):
        whole(client, messages=USER, tools=[strict])
        assert constraint_of(engine)["type"] == "triggered_tags"


def test_a_cut_call_ends_for_its_length():
    with speaking(HERMES) as (client, _):
        found = whole(client, messages=USER, tools=TOOLS, max_tokens=40)
        assert found["finish_reason"] == "length"
        assert streamed(client, messages=USER, tools=TOOLS, max_tokens=40) == found


@pytest.mark.parametrize(
    ("choice", "tools"),
    [
        ({"type": "function", "function": {"name": "nope"}}, TOOLS),
        ({"type": "function"}, TOOLS),
        ("any", TOOLS),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}, TOOLS),
        ("auto", None),
        ("required", None),
    ],
)
def test_bad_choices_are_refused_by_name(choice, tools):
    with speaking("x") as (client, _), pytest.raises(openai.BadRequestError) as caught:
        given = {} if tools is None else {"tools": tools}
        client.chat.completions.create(model=MODEL, messages=USER, tool_choice=choice, **given)
    assert caught.value.param == "tool_choice"


def history(call_id="call_1"):
    return [
        *USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": call_id,
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": PARIS},
                }
            ],
        },
        {"role": "tool", "tool_call_id": call_id, "content": "4 °C"},
    ]


def test_history_is_rendered_with_arguments_as_an_object():
    with speaking("x") as (client, engine):
        whole(client, messages=history(), tools=TOOLS)
        shown = prompt_of(engine)
        assert json.dumps({"arguments": {"city": "Paris"}, "name": "get_weather"}) in shown or (
            json.dumps({"name": "get_weather", "arguments": {"city": "Paris"}}) in shown
        )
        assert "<|im_start|>tool\n4 °C" in shown


def test_history_is_rendered_with_arguments_as_text_where_the_template_joins_them():
    with speaking("x", DEEPSEEK) as (client, engine):
        whole(client, messages=history(), tools=TOOLS)
        assert f"get_weather<｜tool▁sep｜>{PARIS}" in prompt_of(engine, DEEPSEEK)


def test_ids_in_history_are_made_short_where_the_template_wants_it():
    picky = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}"
        "{{ raise_exception('ids must have 9 characters') }}{% endif %}({{ c.id }}){% endfor %}"
        "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}{% endfor %}"
    )
    with speaking("x", picky) as (client, engine):
        whole(client, messages=history("call_0123456789"), tools=TOOLS)
        call, result = prompt_of(engine, picky).strip("()").split(")(")
        assert call == result and len(call) == 9
        whole(client, messages=history("abcdefghi"), tools=TOOLS)
        assert prompt_of(engine, picky) == "(abcdefghi)(abcdefghi)"


def test_the_old_spelling_of_tools():
    call = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'
    old = {"functions": [WEATHER["function"]], "function_call": "auto"}
    with speaking(call) as (client, engine):
        choice = client.chat.completions.create(model=MODEL, messages=USER, **old).choices[0]
        assert choice.message.function_call.name == "get_weather"
        assert choice.message.function_call.arguments == PARIS
        assert choice.message.tool_calls is None and choice.message.content is None
        assert choice.finish_reason == "function_call"
        name, arguments = "", ""
        for chunk in client.chat.completions.create(model=MODEL, messages=USER, stream=True, **old):
            if made := chunk.choices[0].delta.function_call:
                name += made.name or ""
                arguments += made.arguments or ""
        assert (name, arguments) == ("get_weather", PARIS)
        past = [
            *USER,
            {
                "role": "assistant",
                "content": None,
                "function_call": {"name": "f", "arguments": "{}"},
            },
            {"role": "function", "name": "f", "content": "7"},
        ]
        client.chat.completions.create(
            model=MODEL,
            messages=past,
            functions=old["functions"],
            function_call={"name": "get_weather"},
        )
        assert "<|im_start|>tool\n7" in prompt_of(engine)
        assert constraint_of(engine)["stop_after_first"] is True
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model=MODEL, messages=USER, tools=TOOLS, **old)
        assert caught.value.param == "functions"


def test_operators_may_name_the_format_and_turn_auto_off():
    with speaking(TWO["llama3_json"][0], tool_call_parser="llama3_json") as (client, _):
        assert len(whole(client, messages=USER, tools=TOOLS)["tool_calls"]) == 2
    with speaking(HERMES, reads_auto_calls=False) as (client, _):
        assert whole(client, messages=USER, tools=TOOLS)["content"] == HERMES
        assert whole(client, messages=USER, tools=TOOLS, tool_choice="required")["tool_calls"]
