"""Anthropic's own SDK against real processes."""

from __future__ import annotations

import anthropic
import pytest

from tests.clients.conftest import KEY, MODEL

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}},
            "required": ["city"],
            "additionalProperties": False,
        },
    }
]


@pytest.fixture
def client(url):
    with anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0) as made:
        yield made


def ask(client, **options):
    greedy = {"temperature": 0}
    given = {"model": MODEL, "max_tokens": 40, "messages": QUESTION, "extra_body": greedy}
    return client.messages.create(**{**given, **options})


def test_create_and_stream(client):
    message = ask(client)
    assert "Paris" in message.content[0].text
    assert message.stop_reason == "end_turn"
    with client.messages.stream(
        model=MODEL, max_tokens=40, messages=QUESTION, extra_body={"temperature": 0}
    ) as stream:
        assert "".join(stream.text_stream) == message.content[0].text
        usage = stream.get_final_message().usage
    assert usage.output_tokens == message.usage.output_tokens
    counted = client.messages.count_tokens(model=MODEL, messages=QUESTION)
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_an_answer_that_is_begun(client):
    begun = [*QUESTION, {"role": "assistant", "content": "The capital of"}]
    assert ask(client, messages=begun).content[0].text.startswith(" France")


def test_tools(client):
    weather = [{"role": "user", "content": "What is the weather in Paris?"}]
    message = ask(client, messages=weather, tools=TOOLS, max_tokens=80)
    assert message.stop_reason == "tool_use"
    assert [(b.name, b.input) for b in message.content] == [("get_weather", {"city": "Paris"})]


def test_a_demanded_tool_is_called(client):
    choice = {"type": "tool", "name": "get_weather"}
    message = ask(client, tools=TOOLS, tool_choice=choice, max_tokens=200)
    (call,) = message.content
    assert call.name == "get_weather" and isinstance(call.input["city"], str)


def test_stop_sequences(client):
    message = ask(client, stop_sequences=["Paris"])
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Paris")


def test_errors(client):
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        ask(client, messages=[{"role": "user", "content": "x " * 6000}])
    with pytest.raises(anthropic.AuthenticationError):
        ask(client.with_options(api_key="wrong"))
