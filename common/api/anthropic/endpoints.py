"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API over the machinery of chat."""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.anthropic.answer import MessageAnswer
from common.api.anthropic.conversation import is_begun, messages_of
from common.api.anthropic.protocol import CountTokensRequest, MessagesRequest
from common.api.body import read_object
from common.api.constraints import MAX_SCHEMA_BYTES
from common.api.context import RequestInfo, info_of
from common.api.dialect import Dialect, dialect_of, end_of
from common.api.enforce import Budget, enforced
from common.api.errors import parse
from common.api.generation import Demand, Generation, Prompt, Service
from common.api.prompts import chat_prompt
from common.api.protocol import SamplingFields, TemplateFields
from common.api.reasoning.effort import effort_variables
from common.api.refusals import Harmless, refuse
from common.api.sse import EventStream, encode_json, json_answer
from common.api.tools.choice import CallRules, call_rules
from common.errors import BadRequest
from common.request import Constraint
from common.text import TextModel

_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_FORMAT = "output_config.format"
_REFUSED: dict[str, Harmless] = dict.fromkeys(
    ("container", "context_management", "mcp_servers", "output_format"), lambda value: not value
)


async def create_message(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    refuse(body, _REFUSED)
    ask = parse(MessagesRequest, body)
    model = service.resolve(ask.model)
    info = info_of(request)
    dialect = dialect_of(model[1], service.settings)
    rules = _rules(ask)
    prompt = await _prompt(ask, model[1], dialect, service, info)
    prompt_end = end_of(prompt.token_ids, model[1])
    names = None if rules.mode == "none" else rules.names
    reads = names is not None or dialect.reasoning is not None
    demand = Demand(
        max_tokens=ask.max_tokens,
        default_max_tokens=None,
        choices=1,
        logprobs=None,
        prompt_logprobs=None,
        priority=None,
        cache_salt="",
        constraint=enforced(rules, dialect, prompt_end, _format(ask), _budget(ask)),
        shown_specials=dialect.special_marks if reads else frozenset(),
    )
    generation = Generation(service, info, model, _sampling(ask), [prompt], demand, "msg")
    reader = dialect.reader(prompt_end, names, rules.max_calls)
    answer = MessageAnswer(generation, reader, info.request_id)
    if ask.stream:
        limit = service.settings.stalled_reader_s
        return EventStream(request, answer.stream(), limit, done=b"")
    return await json_answer(request, answer.complete())


async def count_tokens(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    refuse(body, _REFUSED)
    ask = parse(CountTokensRequest, body)
    _, text = service.resolve(ask.model)
    dialect = dialect_of(text, service.settings)
    prompt = await _prompt(ask, text, dialect, service, info_of(request))
    answer = {"input_tokens": len(prompt.token_ids)}
    return Response(encode_json(answer), media_type="application/json")


async def _prompt(
    ask: CountTokensRequest, text: TextModel, dialect: Dialect, service: Service, info: RequestInfo
) -> Prompt:
    goes_on = is_begun(ask)
    fields: dict[str, Any] = {
        "messages": messages_of(ask),
        "add_generation_prompt": not goes_on,
        "continue_final_message": goes_on,
    }
    if ask.tools:
        fields["tools"] = [tool.as_chat() for tool in ask.tools]
    return await chat_prompt(
        parse(TemplateFields, fields),
        text,
        service.settings,
        info,
        add_special_tokens=False,
        variables=_variables(ask, dialect),
    )


def _variables(ask: CountTokensRequest, dialect: Dialect) -> dict[str, Any]:
    """`thinking` and `effort` in the template's words."""
    effort: str | None = ask.output_config.effort
    kind = ask.thinking.type if ask.thinking else "adaptive"
    if kind == "enabled":
        if dialect.reasoning is None:
            raise BadRequest(
                "thinking: this model does not reason, there is nothing to budget; leave it out",
                "thinking",
            )
        effort = effort or "medium"
    if kind == "disabled":
        effort = "none"
    return effort_variables(effort, dialect.template, {})


def _budget(ask: CountTokensRequest) -> Budget | None:
    num_tokens = ask.thinking.budget_tokens if ask.thinking else None
    return None if num_tokens is None else Budget(num_tokens, "thinking.budget_tokens")


def _rules(ask: CountTokensRequest) -> CallRules:
    choice = ask.tool_choice
    wanted: Any = None
    if choice is not None:
        named = {"type": "function", "function": {"name": choice.name}}
        wanted = named if choice.type == "tool" else _CHOICES[choice.type]
    tools = [tool.as_chat() for tool in ask.tools]
    is_parallel = choice is None or not choice.disable_parallel_tool_use
    return call_rules(tools, wanted, parallel=is_parallel)


def _format(ask: MessagesRequest) -> Constraint | None:
    wanted = ask.output_config.format
    if wanted is None:
        return None
    text = json.dumps(wanted.schema_, ensure_ascii=False)
    if len(text) > MAX_SCHEMA_BYTES:
        raise BadRequest(f"the schema is longer than {MAX_SCHEMA_BYTES} bytes", _FORMAT)
    return Constraint("json_schema", text, _FORMAT)


def _sampling(ask: MessagesRequest) -> SamplingFields:
    """Values that have been checked already, under other bounds than chat's."""
    return SamplingFields.model_construct(
        temperature=ask.temperature,
        top_p=ask.top_p,
        top_k=ask.top_k,
        stop=ask.stop_sequences,
    )
