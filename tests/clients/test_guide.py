"""What vLLM's guides tell users to type, typed against us: only base URL, key and model differ."""

from __future__ import annotations

import json
import re

import pytest
from openai import OpenAI

from tests.clients.conftest import KEY, MODEL

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def client(url, http):
    with OpenAI(base_url=f"{url}/v1", api_key=KEY, http_client=http) as made:
        yield made


def test_quick_start(client):
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        temperature=0.7,
        max_tokens=150,
    )
    assert response.choices[0].message.content


def test_chat(client):
    response = client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "You are a helpful assistant."},
            {"role": "user", "content": "What is the capital of France?"},
        ],
        temperature=0.7,
        max_tokens=100,
    )
    assert isinstance(response.choices[0].message.content, str)


def test_completion(client):
    response = client.completions.create(
        model=MODEL, prompt="def fibonacci(n):", max_tokens=64, temperature=0.1
    )
    assert isinstance(response.choices[0].text, str)


def test_streaming(client):
    stream = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "Tell me a story."}], stream=True
    )
    pieces = [chunk.choices[0].delta.content for chunk in stream]  # every chunk has a choice
    assert any(pieces)


def test_json(client):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
        },
        "required": ["name", "age"],
    }
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "John Smith is 30 years old."}],
        extra_body={"guided_json": schema},
    )
    found = json.loads(response.choices[0].message.content)
    assert isinstance(found["name"], str) and isinstance(found["age"], int)


def test_batch(client):
    prompts = ["What is 2 + 2?", "What is the capital of France?", "Who wrote Hamlet?"]
    for prompt in prompts:
        response = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], temperature=0.0
        )
        assert response.choices[0].message.content


def test_tools(client):
    tools = [
        {
            "type": "function",
            "function": {
                "name": "get_weather",
                "description": "The weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
            },
        }
    ]
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=tools,
        temperature=0,
    )
    call = response.choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_regex(client):
    pattern = r"\b[A-Z]{2}-\d{4}\b"
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Give me a code."}],
        extra_body={"guided_regex": pattern},
    )
    assert re.fullmatch(pattern, response.choices[0].message.content)


def test_choice(client):
    response = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Classify: win money now"}],
        extra_body={"guided_choice": ["SPAM", "NOT_SPAM"]},
    )
    assert response.choices[0].message.content in ("SPAM", "NOT_SPAM")
