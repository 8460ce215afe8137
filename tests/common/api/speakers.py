"""Apps over a scripted engine whose model speaks one dialect or another."""

import contextlib
import json
from functools import cache
from typing import Any

import openai
from tokenizers import AddedToken, Tokenizer

from common.api.app import ApiSettings
from common.api.scripted import Script, ScriptedEngine
from common.metrics import Metrics
from common.text import TextModel
from tests.common.api.apps import MODEL, TEMPLATE, create_app, served
from tests.common.made_tokenizers import byte_level

THINKER = (
    TEMPLATE.replace("m.content }}", "m.content }}{{ '<think>' + m.reasoning if m.reasoning }}")
    + "{% if add_generation_prompt and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
    "{% if add_generation_prompt and reasoning_effort %}[{{ reasoning_effort }}]{% endif %}"
)
OPENER = TEMPLATE + "{% if add_generation_prompt %}<think>\n{% endif %}"
DEEPSEEK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% for c in m.tool_calls or [] %}"
    "{{ '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + c.function.name + '<｜tool▁sep｜>'"
    " + c.function.arguments }}{% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NOW = {"type": "function", "function": {"name": "now"}}


@cache
def text_model(template=TEMPLATE, special=()):
    tokenizer = Tokenizer.from_str(byte_level().to_str())
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    return TextModel(tokenizer, templates={"default": template}, special_tokens={})


def tokens(text, template=TEMPLATE, special=()):
    return tuple(text_model(template, special).encode(text))


@contextlib.contextmanager
def speaking(text, template=TEMPLATE, special=(), **settings):
    """(SDK client, engine): a model with this template that answers with `text`."""
    engine = ScriptedEngine(Script(tokens(text, template, special)), model=MODEL)
    app = create_app(
        engine,
        lambda model: text_model(template, special),
        Metrics(model_name=MODEL),
        ApiSettings(**settings),
    )
    with (
        served(app) as url,
        openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client,
    ):
        yield client, engine


def streamed(client, **ask):
    """A stream's message, added up by hand; ids, types and names must come once per call."""
    message: dict[str, Any] = {
        "content": "",
        "reasoning": "",
        "tool_calls": [],
        "finish_reason": None,
    }
    for chunk in client.chat.completions.create(**{"model": MODEL, **ask}, stream=True):
        delta = chunk.choices[0].delta
        message["content"] += delta.content or ""
        reasoning = getattr(delta, "reasoning", None) or ""
        assert reasoning == (getattr(delta, "reasoning_content", None) or "")
        message["reasoning"] += reasoning
        for call in delta.tool_calls or ():
            if call.id is not None:
                assert call.index == len(message["tool_calls"]) and call.type == "function"
                message["tool_calls"].append([call.function.name, ""])
            else:
                assert call.type is None and call.function.name is None
            message["tool_calls"][call.index][1] += call.function.arguments
        message["finish_reason"] = chunk.choices[0].finish_reason or message["finish_reason"]
    return message


def whole(client, **ask):
    """The same of an answer that is not streamed."""
    choice = client.chat.completions.create(**{"model": MODEL, **ask}).choices[0]
    calls = choice.message.tool_calls or []
    assert all(call.type == "function" and call.id for call in calls)
    return {
        "content": choice.message.content or "",
        "reasoning": getattr(choice.message, "reasoning", None) or "",
        "tool_calls": [[call.function.name, call.function.arguments] for call in calls],
        "finish_reason": choice.finish_reason,
    }


def prompt_of(engine, template=TEMPLATE, special=()):
    return text_model(template, special).decode(engine.requests[-1].prompt_token_ids)


def constraint_of(engine):
    """The structural tag that the last request was held to; None: it was free."""
    constraint = engine.requests[-1].sampling.constraint
    if constraint is None:
        return None
    assert constraint.kind == "structural_tag"
    return json.loads(constraint.text)["format"]
