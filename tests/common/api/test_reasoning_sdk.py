"""Reasoning through the official SDK, streamed and not."""

import openai
import pytest

from tests.common.api.apps import MODEL, TEMPLATE, USER
from tests.common.api.speakers import (
    OPENER,
    THINKER,
    WEATHER,
    constraint_of,
    prompt_of,
    speaking,
    streamed,
    tokens,
    whole,
)
from tests.common.api.tool_texts import PARIS

THOUGHT = "<think>\nHm, 2 < 3.\n</think>\n\n"
CALL = f'<tool_call>\n{{"name": "get_weather", "arguments": {PARIS}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "template", "special"),
    [
        (f"{THOUGHT}Yes.", THINKER, ()),
        (f"{THOUGHT}Yes.", THINKER, ("<think>", "</think>")),
        (f"{THOUGHT}Yes.".removeprefix("<think>\n"), OPENER, ()),
        ("[THINK]Hm, 2 < 3.[/THINK]Yes.", TEMPLATE, ("[THINK]", "[/THINK]")),
        (
            "Here is my thought process: Hm, 2 < 3.\n\nHere is my response: Yes.",
            TEMPLATE + "{# Here is my thought process: #}",
            (),
        ),
    ],
)
def test_reasoning_is_told_apart(text, template, special):
    with speaking(text, template, special) as (client, _):
        found = whole(client, messages=USER)
        assert (found["reasoning"], found["content"]) == ("Hm, 2 < 3.", "Yes.")
        assert found["finish_reason"] == "stop"
        assert streamed(client, messages=USER) == found
        message = client.chat.completions.create(model=MODEL, messages=USER).choices[0].message
        assert message.reasoning == message.reasoning_content == "Hm, 2 < 3."


def test_answers_without_reasoning_have_no_such_fields():
    with speaking("Yes.", THINKER) as (client, _):
        message = client.chat.completions.create(model=MODEL, messages=USER).choices[0].message
        assert message.content == "Yes."
        assert "reasoning" not in message.model_dump()


def test_reasoning_and_tools_together():
    with speaking(f"{THOUGHT}Let me see.\n{CALL}", THINKER) as (client, _):
        found = whole(client, messages=USER, tools=[WEATHER])
        assert found == {
            "reasoning": "Hm, 2 < 3.",
            "content": "Let me see.",
            "tool_calls": [["get_weather", PARIS]],
            "finish_reason": "tool_calls",
        }
        assert streamed(client, messages=USER, tools=[WEATHER]) == found


def test_calls_in_reasoning_are_thoughts():
    text = f"<think>maybe {CALL}</think>No."
    with speaking(text, THINKER) as (client, _):
        found = whole(client, messages=USER, tools=[WEATHER])
        assert found["tool_calls"] == []
        assert (found["reasoning"], found["content"]) == (f"maybe {CALL}", "No.")


def test_a_demand_for_calls_leaves_reasoning_free():
    with speaking(f"Hm.\n</think>\n\n{CALL}", OPENER) as (client, engine):
        found = whole(client, messages=USER, tools=[WEATHER], tool_choice="required")
        assert found["tool_calls"] and found["reasoning"] == "Hm."
        thinking = constraint_of(engine)["elements"][0]
        assert (thinking["begin"], thinking["end"]) == ("", "</think>")


def test_reasoning_may_be_left_out_but_is_counted():
    with speaking(f"{THOUGHT}Yes.", THINKER) as (client, _):
        hidden = {"messages": USER, "extra_body": {"include_reasoning": False}}
        found = whole(client, **hidden)
        assert (found["reasoning"], found["content"]) == ("", "Yes.")
        assert streamed(client, **hidden) == found
        usage = client.chat.completions.create(model=MODEL, **hidden).usage
    assert usage.completion_tokens_details.reasoning_tokens == len(
        tokens(THOUGHT.rstrip(), THINKER)
    )


def test_tokens_are_counted_in_every_choice_and_in_streams():
    expected = 2 * len(tokens(THOUGHT.rstrip(), THINKER))
    with speaking(f"{THOUGHT}Yes.", THINKER) as (client, _):
        answer = client.chat.completions.create(model=MODEL, messages=USER, n=2)
        assert answer.usage.completion_tokens_details.reasoning_tokens == expected
        *_, last = client.chat.completions.create(
            model=MODEL, messages=USER, n=2, stream=True, stream_options={"include_usage": True}
        )
        assert last.usage.completion_tokens_details.reasoning_tokens == expected


def test_cut_reasoning_leaves_content_null():
    with speaking(f"{THOUGHT}Yes.", THINKER) as (client, _):
        answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=9)
        choice = answer.choices[0]
        assert choice.finish_reason == "length"
        assert choice.message.content is None and "Hm" in choice.message.reasoning
        assert answer.usage.completion_tokens_details.reasoning_tokens == 9


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_history_may_have_reasoning(field):
    past = [*USER, {"role": "assistant", "content": "4", field: "2+2"}, *USER]
    with speaking("x", THINKER) as (client, engine):
        whole(client, messages=past)
        assert "<think>2+2" in prompt_of(engine, THINKER)


def test_effort_reaches_the_template():
    with speaking("x", THINKER) as (client, engine):
        whole(client, messages=USER, reasoning_effort="none")
        assert prompt_of(engine, THINKER).endswith("<think>\n\n</think>\n\n[none]")
        whole(client, messages=USER, reasoning_effort="high")
        assert prompt_of(engine, THINKER).endswith("assistant\n[high]")


MARKS = ("<think>", "</think>")


@pytest.mark.parametrize("budget", [0, 5])
def test_a_budget_bounds_the_reasoning_and_nothing_else(budget):
    with speaking(f"{THOUGHT}Yes.", THINKER, MARKS) as (client, engine):
        whole(client, messages=USER, extra_body={"thinking_token_budget": budget})
        assert engine.requests[-1].sampling.constraint.field == "thinking_token_budget"
        (thinks, free), without = (each["elements"] for each in split(constraint_of(engine)))
        assert thinks["content"] == {"type": "any_text", "max_tokens": budget}
        assert (thinks["begin"], thinks["end"]) == MARKS
        assert free == {"type": "any_tokens"}
        assert without == [{"type": "any_tokens", "excludes": ["<think>"]}]


def split(either):
    """Both ways an answer may go, as sequences."""
    assert either["type"] == "or"
    first, second = either["elements"]
    return first, {"elements": [second]}


def test_a_budget_holds_beside_other_demands():
    budget = {"thinking_token_budget": 7}
    with speaking("Hm.</think>{}", OPENER, MARKS) as (client, engine):
        wanted = {"type": "json_object"}
        whole(client, messages=USER, response_format=wanted, extra_body=budget)
        thinks, _, content = constraint_of(engine)["elements"]
        assert (thinks["begin"], thinks["content"]["max_tokens"]) == ("", 7)
        assert content["type"] == "json_schema"


def test_without_reasoning_there_is_nothing_to_bound():
    budget = {"thinking_token_budget": 7}
    with speaking("x") as (client, engine):  # a model that does not reason
        whole(client, messages=USER, extra_body=budget)
        assert engine.requests[-1].sampling.constraint is None
    switched = THINKER.partition("{% if add_generation_prompt and reasoning_effort %}")[0]
    with speaking("x", switched, MARKS) as (client, engine):
        whole(client, messages=USER, reasoning_effort="none", extra_body=budget)
        assert engine.requests[-1].sampling.constraint is None


@pytest.mark.parametrize(
    ("budget", "template", "special"),
    [
        (-1, THINKER, MARKS),
        ("5", THINKER, MARKS),
        (5, THINKER, ()),  # marks that are spelled: nobody could tell where reasoning ends
        (5, TEMPLATE + "{# Here is my thought process: #}", ()),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_by_name(budget, template, special):
    with (
        speaking("x", template, special) as (client, _),
        pytest.raises(openai.BadRequestError) as caught,
    ):
        whole(client, messages=USER, extra_body={"thinking_token_budget": budget})
    assert caught.value.param == "thinking_token_budget"


def test_operators_may_name_the_format():
    with speaking(f"{THOUGHT}Yes.", reasoning_parser="qwen3") as (client, _):
        assert whole(client, messages=USER)["reasoning"] == "Hm, 2 < 3."
