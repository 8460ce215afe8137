"""Jinja for templates that nobody here has read: no way out, no endless loop, no huge value.

Jinja's own sandbox closes the ways out. On top of it every loop and macro looks at a deadline, and
whatever multiplies, joins or repeats text is measured before it is built.
"""

from __future__ import annotations

import contextvars
import datetime
import json
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_CHARS = 8 << 20  # of any text or list that a template builds
MAX_WIDTH = 1024  # of padding and indentation

# Padding: nothing a prompt needs, and one call can fill the memory.
_REFUSED_METHODS = frozenset({"ljust", "rjust", "center", "zfill", "expandtabs", "translate"})
_REFUSED_FILTERS = ("wordwrap", "urlize", "xmlattr")
# The same by format specification: `{:9999}`, `{:{}}`, `%9999d`, `%*d`.
_WIDE_BRACES = re.compile(r"[:!][^}]*(\d{4}|\{)")
_WIDE_PERCENT = re.compile(r"%[^a-zA-Z%]*(\d{4}|\*)")

_deadline: contextvars.ContextVar[float] = contextvars.ContextVar("template_deadline")


class TemplateRefused(Exception):
    """The template does not compile, takes too long or builds something too large."""


class Raised(jinja2.TemplateError):
    """The template called `raise_exception`: it refuses the conversation."""


def compile_template(source: str) -> jinja2.Template:
    """Raises TemplateRefused."""
    try:
        return _environment.from_string(source)
    except (jinja2.TemplateError, RecursionError) as error:
        raise TemplateRefused(f"does not compile: {error}") from None


def run_template(template: jinja2.Template, variables: dict[str, Any], deadline_s: float) -> str:
    """The text. Raises TemplateRefused, Raised, and whatever else a wrong template raises."""
    token = _deadline.set(time.monotonic() + deadline_s)
    try:
        pieces: list[str] = []
        num_chars = 0
        for piece in template.generate(**variables):
            _check_deadline()
            num_chars += len(piece)
            _check_size(num_chars)
            pieces.append(piece)
        return "".join(pieces)
    finally:
        _deadline.reset(token)


def _check_deadline() -> None:
    if time.monotonic() > _deadline.get():
        raise TemplateRefused("takes too long to render")


def _check_size(size: int) -> None:
    if size > MAX_CHARS:
        raise TemplateRefused("builds too large a value")


@jinja2.pass_context  # so that it is not evaluated once, at compile time
def _tick(context: jinja2.runtime.Context, value: None) -> None:
    _check_deadline()


def _bounded(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)):
        _check_size(len(value))
    return value


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> jinja2.nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(jinja2.nodes.For):
            loop.body.insert(0, _tick_statement(loop.lineno))
        for macro in tree.find_all(jinja2.nodes.Macro):
            macro.body.insert(0, _tick_statement(macro.lineno))
        for text in list(tree.find_all(jinja2.nodes.Concat)):
            text.nodes = [_filtered(jinja2.nodes.Concat(text.nodes), "_bounded", text.lineno)]
        return tree

    def call_binop(
        self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any
    ) -> Any:
        if operator == "%" and isinstance(left, str):
            _check_percent(left)
        if operator == "*":
            _check_product(left, right)
        elif operator == "**" and (abs(left) > 1 << 32 or abs(right) > 64):
            raise TemplateRefused("builds too large a number")
        return _bounded(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Jinja calls this for `"…".format`; its own check is against attribute tricks only."""
        formatter = super().wrap_str_format(value)
        if formatter is not None and _WIDE_BRACES.search(value.__self__):
            raise TemplateRefused("builds too large a value")
        return formatter

    def call(
        self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any
    ) -> Any:
        text = getattr(function, "__self__", None)
        if isinstance(text, str):
            name = function.__name__
            if name in _REFUSED_METHODS:
                raise jinja2.exceptions.SecurityError(f"text has no {name} here")
            if name == "replace" and len(args) >= 2:
                _check_replace(text, args[0], args[1])
            elif name == "join" and args:
                args = (_checked_join(text, args[0]),)
        return super().call(context, function, *args, **kwargs)


def _tick_statement(lineno: int) -> jinja2.nodes.ExprStmt:
    nothing = jinja2.nodes.Const(None, lineno=lineno)
    return jinja2.nodes.ExprStmt(_filtered(nothing, "_tick", lineno), lineno=lineno)


def _filtered(node: jinja2.nodes.Expr, name: str, lineno: int) -> jinja2.nodes.Filter:
    return jinja2.nodes.Filter(node, name, [], [], None, None, lineno=lineno)


def _check_product(left: Any, right: Any) -> None:
    """Numbers by their size, texts and lists by their length."""
    sizes = [len(side) if hasattr(side, "__len__") else side for side in (left, right)]
    if not (hasattr(left, "__len__") or hasattr(right, "__len__")):
        if abs(left) > 1 << 64 or abs(right) > 1 << 64:
            raise TemplateRefused("builds too large a number")
        return
    _check_size(sizes[0] * sizes[1])


def _check_replace(text: str, old: str, new: str) -> None:
    _check_size(len(text) + text.count(old) * max(0, len(new) - len(old)))


def _checked_join(separator: str, items: Iterable[Any]) -> list[Any]:
    found = list(items)
    _check_size(sum(len(str(item)) + len(separator) for item in found))
    return found


def _check_percent(text: str) -> None:
    if _WIDE_PERCENT.search(text):
        raise TemplateRefused("builds too large a value")


def _check_widths(*widths: Any) -> None:
    for width in widths:
        if (len(width) if isinstance(width, str) else width or 0) > MAX_WIDTH:
            raise TemplateRefused("builds too large a value")


def _format(text: str, *args: Any, **kwargs: Any) -> str:
    _check_percent(text)
    return str(text) % (kwargs or args)


def _padded(plain: Callable[..., str]) -> Callable[..., str]:
    """Jinja's `center` or `indent` with narrow arguments only."""

    def padded(text: str, *args: Any, **kwargs: Any) -> str:
        _check_widths(*args, *kwargs.values())
        return str(_bounded(plain(text, *args, **kwargs)))

    return padded


@jinja2.pass_eval_context
def _replace(
    context: jinja2.nodes.EvalContext, text: Any, old: Any, new: Any, count: int | None = None
) -> str:
    _check_replace(str(text), str(old), str(new))
    return str(text).replace(str(old), str(new), -1 if count is None else count)


@jinja2.pass_eval_context
def _join(
    context: jinja2.nodes.EvalContext,
    items: Iterable[Any],
    separator: str = "",
    attribute: str | int | None = None,
) -> Any:
    plain = jinja2.filters.FILTERS["join"]
    found = list(items)
    if attribute is None:
        found = _checked_join(str(separator), found)
    return _bounded(plain(context, found, str(separator), attribute))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; Jinja's own would escape for HTML."""
    _check_widths(indent)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> None:
    raise Raised(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(str(pattern)[:64])


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks the assistant's part for training; here it is just its body."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _make_environment() -> _Environment:
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    for name in _REFUSED_FILTERS:
        environment.filters.pop(name)
    environment.globals.pop("lipsum")
    environment.filters.update(
        center=_padded(environment.filters["center"]),
        format=_format,
        indent=_padded(environment.filters["indent"]),
        join=_join,
        replace=_replace,
        tojson=_tojson,
        _bounded=_bounded,
        _tick=_tick,
    )
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_environment = _make_environment()
