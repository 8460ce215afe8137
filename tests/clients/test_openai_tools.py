"""Tool calls of the bundled model, through the official SDK."""

import json

import openai
import pytest

from tests.clients.conftest import KEY
from tests.common.api.speakers import streamed, whole

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "unit": {"enum": ["celsius", "fahrenheit"]},
    },
    "required": ["city", "unit"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
STRICT = {
    "type": "function",
    "function": {"name": "forecast", "parameters": SCHEMA, "strict": True},
}
QUESTION = [{"role": "user", "content": "What is the weather in Paris?"}]


def _ask(client):
    """All that one topology is asked, one thing after the other."""
    common = {"messages": QUESTION, "model": "xpyd-demo", "temperature": 0, "max_tokens": 120}
    free = whole(client, tools=[WEATHER], **common)
    assert [name for name, _ in free["tool_calls"]] == ["get_weather"]
    assert json.loads(free["tool_calls"][0][1]) == {"city": "Paris"}
    assert free["finish_reason"] == "tool_calls"
    assert streamed(client, tools=[WEATHER], **common) == free

    hot = {**common, "temperature": 1.5, "seed": 3}
    demanded = whole(client, tools=[WEATHER, STRICT], tool_choice="required", **hot)
    assert demanded["tool_calls"] and demanded["content"] == ""
    named = {"type": "function", "function": {"name": "forecast"}}
    for seed in range(3):
        forced = whole(client, tools=[WEATHER, STRICT], tool_choice=named, **{**hot, "seed": seed})
        [(name, arguments)] = forced["tool_calls"]
        assert name == "forecast" and forced["finish_reason"] == "stop"
        found = json.loads(arguments)
        assert set(found) == {"city", "unit"} and found["unit"] in ("celsius", "fahrenheit")


def test_calls_of_the_bundled_model(url, http):
    with openai.OpenAI(
        base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=http
    ) as client:
        _ask(client)
