"""Chat templates: Jinja in a sandbox, with the helpers that Hugging Face gives them.

Templates come with models, so they are not trusted: no attribute tricks (sandbox), every loop
watches a deadline, no text or list beyond a size. Knows nothing of tokens.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from common.errors import BadRequest

MAX_CHARS = 8 << 20
DEADLINE_S = 5.0
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})
_CONTINUE_HERE = "\ue000continue\ue001"  # private use: stands for the end of the final message

_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("template_deadline")


class TemplateRefused(Exception):
    """The template does not compile, took too long, grew too large or left the sandbox."""


class ChatTemplate:
    """One compiled template."""

    def __init__(self, source: str, special_tokens: dict[str, str] | None = None) -> None:
        """`special_tokens`: bos_token, eos_token … by name. Raises TemplateRefused."""
        self.source = source
        self._special_tokens = special_tokens or {}
        try:
            self._template = _environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateRefused(f"does not compile: {error}") from None

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        documents: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: dict[str, Any] | None = None,
        deadline_s: float = DEADLINE_S,
    ) -> str:
        """The prompt's text. Raises BadRequest if the template refuses the conversation."""
        variables = variables or {}
        if taken := sorted(_RESERVED & variables.keys()):
            raise BadRequest(f"{taken[0]!r} cannot be set here", "chat_template_kwargs")
        if continue_final_message:
            messages = [*messages[:-1], _marked(messages[-1])]
        text = self._render(
            {
                **self._special_tokens,
                **variables,
                "messages": messages,
                "tools": tools,
                "documents": documents,
                "add_generation_prompt": add_generation_prompt,
            },
            deadline_s,
        )
        return _cut(text) if continue_final_message else text

    def probe(self, deadline_s: float = DEADLINE_S) -> None:
        """Raise TemplateRefused if the template runs away on the smallest conversation."""
        try:
            self.render([{"role": "user", "content": "Hi"}], deadline_s=deadline_s)
        except BadRequest as error:
            if isinstance(error.__cause__, TemplateRefused):
                raise error.__cause__ from None

    def _render(self, variables: dict[str, Any], deadline_s: float) -> str:
        token = _deadline.set(time.monotonic() + deadline_s)
        try:
            pieces, size = [], 0
            for piece in self._template.generate(**variables):
                _check_deadline()
                size += len(piece)
                if size > MAX_CHARS:
                    raise TemplateRefused("renders too much text")
                pieces.append(piece)
            return "".join(pieces)
        except TemplateRefused as error:
            raise BadRequest(f"the chat template {error}", "messages") from error
        except _Raised as error:
            raise BadRequest(f"the chat template refuses this: {error}", "messages") from None
        except _CANNOT_RENDER as error:
            raise BadRequest(f"the chat template cannot render this: {error}", "messages") from None
        finally:
            _deadline.reset(token)


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str):
        raise BadRequest("the final message has no text to continue", "continue_final_message")
    return {**message, "content": content + _CONTINUE_HERE}


def _cut(text: str) -> str:
    end = text.rfind(_CONTINUE_HERE)
    if end < 0:
        raise BadRequest("the template drops the final message", "continue_final_message")
    return text[:end]


# --- the sandbox ---------------------------------------------------------------------------------


_CANNOT_RENDER = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    RecursionError,
    MemoryError,
)


class _Raised(jinja2.TemplateError):
    """The template called `raise_exception`."""


def _check_deadline() -> None:
    if time.monotonic() > _deadline.get():
        raise TemplateRefused("takes too long to render")


def _watched(items: Iterable[Any]) -> Iterator[Any]:
    """What every `for` iterates over: the same items, under the deadline."""
    for item in items:
        _check_deadline()
        yield item


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_CHARS:
        raise TemplateRefused("builds too large a value")
    return value


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.iter = _filtered(loop.iter, "_watched")
        for node in list(tree.find_all(jinja2.nodes.Concat)):
            node.nodes = [_filtered(jinja2.nodes.Concat(node.nodes), "_bounded")]
        return tree

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "%" and isinstance(left, (str, bytes)):
            raise jinja2.exceptions.SecurityError("no string formatting")
        if operator == "*" and not (_is_number(left) and _is_number(right)):
            count, value = (left, right) if _is_number(left) else (right, left)
            if not isinstance(count, int) or len(value) * count > MAX_CHARS:
                raise TemplateRefused("builds too large a value")
        if operator == "**" and (abs(right) > 64 or abs(left) > 1 << 32):
            raise TemplateRefused("builds too large a number")
        if operator == "*" and _is_number(left) and abs(left) > 1 << 2048:
            raise TemplateRefused("builds too large a number")
        return _bounded(super().call_binop(context, operator, left, right))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _filtered(node: jinja2.nodes.Node, name: str) -> jinja2.nodes.Filter:
    assert isinstance(node, jinja2.nodes.Expr)
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is just its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> None:
    raise _Raised(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(str(pattern)[:64])


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if isinstance(indent, int) and indent > 16:
        raise TemplateRefused("builds too large a value")
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    for name in ("center", "format", "indent", "wordwrap", "urlize", "xmlattr", "random"):
        environment.filters.pop(name)  # can build huge texts, or are not deterministic
    environment.globals.pop("lipsum")
    environment.filters.update(tojson=_tojson, _watched=_watched, _bounded=_bounded)
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_environment = _make_environment()
