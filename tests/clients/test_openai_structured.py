"""Structured output in all the ways that OpenAI's SDK and vLLM's extensions ask for it."""

from __future__ import annotations

import re

import openai
import pytest
from pydantic import BaseModel, ConfigDict, Field

from tests.clients.conftest import KEY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


class Person(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=120)
    tags: list[str] = Field(max_length=0)


def test_the_ways_to_ask(site, http):
    """API.md, tasks 4 and 9, and OpenAI's own; streams say what whole answers say."""

    def asks(client):
        user = {"role": "user", "content": "Hi"}
        chat = client.chat.completions
        base = {"model": "xpyd-demo", "messages": [user], "max_tokens": 200, "seed": 3}
        schema = Person.model_json_schema()
        parsed = chat.parse(**base, response_format=Person)
        assert isinstance(parsed.choices[0].message.parsed, Person)
        guided = chat.create(**base, extra_body={"guided_json": schema}, n=2, temperature=1.5)
        for choice in guided.choices:
            Person.model_validate_json(choice.message.content)
            assert choice.finish_reason == "stop"
        assert guided.choices[0].message.content != guided.choices[1].message.content
        chosen = chat.create(**base, extra_body={"guided_choice": ["SPAM", "NOT_SPAM"]})
        assert chosen.choices[0].message.content in ("SPAM", "NOT_SPAM")
        pattern = r"\b\d{3}-\d{4}\b"
        matched = chat.create(**base, extra_body={"guided_regex": pattern}, logprobs=True)
        assert re.fullmatch(pattern, matched.choices[0].message.content)
        assert all(entry.logprob <= 0 for entry in matched.choices[0].logprobs.content)
        extra = {"structured_outputs": {"regex": r"(ab){4}!"}}
        cut = client.completions.create(
            model="xpyd-demo", prompt="x", max_tokens=99, stop=["ba"], extra_body=extra
        )
        assert cut.choices[0].text == "a" and cut.choices[0].finish_reason == "stop"
        whole = chat.create(**base, response_format={"type": "json_object"}, temperature=1.2)
        pieces = [
            chunk.choices[0].delta.content or ""
            for chunk in chat.create(
                **base, response_format={"type": "json_object"}, temperature=1.2, stream=True
            )
        ]
        assert "".join(pieces) == whole.choices[0].message.content

    with openai.OpenAI(
        base_url=f"{site.url}/v1", api_key=KEY, max_retries=0, http_client=http
    ) as client:
        asks(client)
    site.at_rest()
