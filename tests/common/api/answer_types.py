"""Every answer and every event, held strictly to the types of OpenAI's and Anthropic's SDKs.

A field that the types do not know must be among the extensions listed here, by the type that has
it; a value of the wrong kind or a missing field raises. `Checked` does it for an app: whatever a
test asks of it, all that goes out is looked at, and conftest.py fails the test for what is wrong.
"""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from anthropic.types.message_tokens_count import MessageTokensCount
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseItem
from pydantic import BaseModel, ConfigDict, TypeAdapter

from tests.common.api.response_events import TYPES as RESPONSE_EVENTS

_PROMPT = {"prompt_token_ids", "prompt_text", "prompt_logprobs", "kv_transfer_params"}
_CHOICE = {"stop_reason", "token_ids"}
_SAID = {"reasoning", "reasoning_content"}
EXTENSIONS: dict[str, set[str]] = {
    "ChatCompletion": _PROMPT,
    "ChatCompletionChunk": {*_PROMPT, "timings"},
    "Choice": _CHOICE,
    "ChoiceDelta": _SAID,
    "ChatCompletionMessage": _SAID,
    "Completion": {"kv_transfer_params", "timings"},
    "CompletionChoice": {*_CHOICE, *_PROMPT},
    "Model": {"root", "parent", "max_model_len", "permission"},
    # What OpenAI sends, and some versions of its types know.
    "Response": {"store"},
    "ResponseFunctionCallArgumentsDoneEvent": {"name"},
    "Logprob": {"bytes"},
    "LogprobTopLogprob": {"bytes"},
}
OWN_FINISH_REASONS = ("repetition",)  # vLLM's, told to those who ask for the detection


class _Error(BaseModel):
    model_config = ConfigDict(extra="forbid")
    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    model_config = ConfigDict(extra="forbid")
    error: _Error


class ModelList(BaseModel):
    object: str
    data: list[Model]


class ItemPage(BaseModel):
    object: str
    data: list[ResponseItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedResponse(BaseModel):
    id: str
    object: str
    deleted: bool


class InputTokens(BaseModel):
    object: str
    input_tokens: int


_RESPONSE = "/v1/responses/"


def check_answer(method: str, path: str, data: bytes) -> None:
    """A whole JSON answer with status 200. Raises for what is wrong."""
    if (kind := _answer_type(method, path, data)) is not None:
        fits(kind, _without_own_words(data))


def _answer_type(method: str, path: str, data: bytes) -> Any:
    if path == "/invocations":
        return ChatCompletion if b'"chat.completion"' in data else Completion
    if path.startswith(_RESPONSE) and path != "/v1/responses/input_tokens":
        if path.endswith("/input_items"):
            return ItemPage
        return DeletedResponse if method == "DELETE" else Response
    if path.startswith("/v1/models/"):
        return Model
    return {
        "/v1/chat/completions": ChatCompletion,
        "/v1/completions": Completion,
        "/v1/responses": Response,
        "/v1/responses/input_tokens": InputTokens,
        "/v1/messages": Message,
        "/v1/messages/count_tokens": MessageTokensCount,
        "/v1/models": ModelList,
        "/v1/embeddings": CreateEmbeddingResponse,
    }.get(path)


def check_events(path: str, data: bytes, *, is_whole: bool) -> None:
    """The events of a stream; of one that was cut off, those that are whole."""
    blocks = data.decode().split("\n\n")
    last = blocks.pop()
    assert not last or not is_whole, f"the stream ends within an event: {last!r}"
    for block in blocks:
        if not block.startswith(":"):
            _check_event(path, block)


def _check_event(path: str, block: str) -> None:
    if path == "/v1/messages" or path.startswith("/v1/responses"):
        head, text = block.split("\n")
        value = json.loads(text.removeprefix("data: "))
        assert head == f"event: {value['type']}"
        if value["type"] == "error" and path == "/v1/messages":
            assert set(value["error"]) == {"type", "message"}
            return
        kind = RawMessageStreamEvent
        if path != "/v1/messages":
            kind = RESPONSE_EVENTS[value["type"]]
        fits(kind, _encode(value))
        return
    assert block.startswith("data: ") and "\n" not in block, block
    text = block.removeprefix("data: ")
    if text == "[DONE]":
        return
    if text.startswith('{"error"'):
        fits(OpenAIError, text.encode())
    elif '"chat.completion.chunk"' in text:
        chunk = fits(ChatCompletionChunk, _without_own_words(text.encode()))
        assert chunk.choices or chunk.usage, "a chunk without choices must have the usage"
    elif '"text_completion"' in text:
        value = json.loads(text)
        for choice in value["choices"]:  # the types have no chunks, which end with the last one
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        fits(Completion, _without_own_words(_encode(value)))


def fits(kind: Any, data: bytes) -> Any:
    """The value as `kind`, strictly, with no field but its own and our extensions."""
    value = _adapter(kind).validate_json(data, strict=True)
    _look_for_strangers(value, "")
    return value


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _without_own_words(data: bytes) -> bytes:
    """What OpenAI sends and its types do not say, and the words that are ours."""
    # An echoed text's first token has no log-probability.
    data = data.replace(b'"token_logprobs":[null', b'"token_logprobs":[0')
    data = data.replace(b'"top_logprobs":[null', b'"top_logprobs":[{}')
    data = re.sub(rb'"embedding":"[^"]*"', b'"embedding":[]', data)  # base64, if asked for
    for word in OWN_FINISH_REASONS:
        data = data.replace(f'"finish_reason":"{word}"'.encode(), b'"finish_reason":"stop"')
    return data


def _look_for_strangers(value: Any, place: str) -> None:
    if isinstance(value, list):
        for n, each in enumerate(value):
            _look_for_strangers(each, f"{place}[{n}]")
    if not isinstance(value, BaseModel):
        return
    name = type(value).__name__
    strangers = set(value.model_extra or ()) - EXTENSIONS.get(name, set())
    assert not strangers, f"{name}{place} has unknown fields {sorted(strangers)}"
    for field in type(value).model_fields:
        _look_for_strangers(getattr(value, field), f"{place}.{field}")


class Checked:
    """An app whose answers are held to the types, and to its own /openapi.json."""

    problems: list[str] = []  # of all apps, since the last look

    def __init__(self, app: Any) -> None:
        self.app = app

    def __getattr__(self, name: str) -> Any:
        return getattr(self.app, name)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = _Seen()

        async def forward(message: Any) -> None:
            seen.add(message)
            await send(message)

        try:
            await self.app(scope, receive, forward)
        finally:
            try:
                self._check(scope["method"], scope["path"], seen)
            except Exception as error:
                asked = f"{scope['method']} {scope['path']}"
                shown = bytes(seen.data)[:2000]
                self.problems.append(f"{asked}: {type(error).__name__}: {error}\n{shown!r}")

    def _check(self, method: str, path: str, seen: _Seen) -> None:
        if seen.status == 200 and seen.kind == "text/event-stream":
            check_events(path, bytes(seen.data), is_whole=seen.is_whole)
        elif seen.kind == "application/json" and seen.data and seen.is_whole:
            if seen.status == 200:
                check_answer(method, path, bytes(seen.data))
            paths = _document(self.app)["paths"]
            check_documented(paths, method, path, seen.status, bytes(seen.data))


def check_documented(paths: Any, method: str, path: str, status: int, data: bytes) -> None:
    """A JSON answer against the `paths` of the app's document. Raises for what is wrong."""
    told = _operation(paths, method.lower(), path)
    if told is not None:
        schema = told["responses"][str(status)]["content"]["application/json"]["schema"]
        _validator(_encode(schema)).validate(json.loads(data))


class _Seen:
    """What went out in answer to one request."""

    def __init__(self) -> None:
        self.status = 0
        self.kind = ""
        self.data = bytearray()
        self.is_whole = False

    def add(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = dict(message.get("headers", ()))
            self.kind = headers.get(b"content-type", b"").decode().partition(";")[0]
        elif message["type"] == "http.response.body":
            self.data += message.get("body", b"")
            self.is_whole = not message.get("more_body", False)


@cache
def _validator(schema: bytes) -> Any:
    return Draft202012Validator(_closed(json.loads(schema)))


def _closed(schema: Any) -> Any:
    """With no room for fields that it does not describe."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(each) for name, each in schema.items()}
    if isinstance(schema.get("properties"), dict) and "type" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


_documents: dict[int, Any] = {}


def _document(app: Any) -> Any:
    """Made once per set of paths: they are all that documents of our apps differ in."""
    key = hash(tuple(sorted(route.path for route in app.routes)))
    if key not in _documents:
        _documents[key] = app.openapi()
    return _documents[key]


def _operation(paths: Any, method: str, path: str) -> Any:
    """The described operation that a path belongs to; None: there is none."""
    if path in paths:
        return paths[path].get(method)
    parts = path.strip("/").split("/")
    for known, methods in paths.items():
        names = known.strip("/").split("/")
        if "{" not in known or method not in methods:
            continue
        if known.endswith("{model}"):
            if parts[: len(names) - 1] == names[:-1]:
                return methods[method]
        elif len(names) == len(parts) and all(
            name.startswith("{") or name == part for name, part in zip(names, parts, strict=True)
        ):
            return methods[method]
    return None
