"""Anthropic's SDK over a real server, for the tests of /v1/messages."""

import contextlib

import anthropic

from tests.common.api.apps import app_of, served

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [
    {
        "name": "get_weather",
        "description": "The weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
    }
]


@contextlib.contextmanager
def sdk(engine, key="unused", **settings):
    with (
        served(app_of(engine, **settings)) as url,
        anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client,
    ):
        yield client
