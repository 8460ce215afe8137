"""Frozen dataclasses whose fields are flags: the only reader of argv and of the environment.

A field declares its help once; `add_options` makes the flag, `from_args` the object, and
docs/cli.md is generated from the same place. Knows no program's settings (`config.py` has them).
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from dataclasses import field
from typing import Any, Literal, TypeVar

from common.errors import ConfigError

T = TypeVar("T")


def option(default: Any, help: str, **extra: Any) -> Any:
    """A field that is also a flag. `extra`: positional, metavar, env (a variable that may set
    it), flag=False (only the variable may: a secret, which argv would show to everybody).
    """
    metadata = {"help": help, **extra}
    if isinstance(default, (list, dict)):
        raise TypeError("defaults must be immutable")
    return field(default=default, metadata=metadata, repr=extra.get("flag", True))


def required(help: str, **extra: Any) -> Any:
    return field(metadata={"help": help, **extra})


def add_options(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """One flag per field of `cls`; what it inherits comes last."""
    hints = typing.get_type_hints(cls)
    for entry in sorted(dataclasses.fields(cls), key=lambda e: e.name not in cls.__annotations__):
        if entry.metadata.get("flag", True):
            _add_option(parser, entry, hints[entry.name])


def from_args(cls: type[T], args: argparse.Namespace, env: typing.Mapping[str, str]) -> T:
    """Flags over environment over defaults. Raises ConfigError with one line for a bad value."""
    values: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for entry in dataclasses.fields(cls):  # type: ignore[arg-type]
        given = getattr(args, entry.name, None)
        variable = entry.metadata.get("env")
        if given is None and variable and env.get(variable):
            given = _from_text(entry, hints[entry.name], env[variable], variable)
        if given is not None:
            values[entry.name] = tuple(given) if isinstance(given, list) else given
    return cls(**values)


def parse_address(flag: str, text: str) -> tuple[str, int]:
    """`host:port` → (host, port)."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{flag}: expected HOST:PORT, got {text!r}")
    return host.strip("[]"), int(port)


def parse_cores(text: str) -> tuple[int, ...]:
    """`0-3,8` → (0, 1, 2, 3, 8)."""
    cores: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.strip().partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            raise ConfigError(f"--cpu-cores: expected a list like 0-3,8, got {text!r}")
        cores.extend(range(int(first), int(last or first) + 1))
    return tuple(dict.fromkeys(cores))


def parse_bytes(text: str) -> int:
    """`512MiB`, `4g`, `1000000` → bytes."""
    units = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
    lowered = text.strip().lower().removesuffix("b").removesuffix("i")
    unit = lowered[-1:] if lowered[-1:] in "kmgt" else ""
    try:
        return int(float(lowered.removesuffix(unit)) * units[unit])
    except (ValueError, KeyError):
        raise argparse.ArgumentTypeError(
            f"expected bytes like 512MiB or 4GiB, got {text!r}"
        ) from None


def _add_option(parser: argparse.ArgumentParser, entry: Any, hint: Any) -> None:
    meta = entry.metadata
    text = meta["help"].replace("%", "%%")
    shown = entry.default
    if shown not in (None, "", (), False, dataclasses.MISSING) and not isinstance(shown, bool):
        text += f" (default {shown})"
    if meta.get("env"):
        text += f" [${meta['env']}]"
    if meta.get("positional"):
        parser.add_argument(entry.name, metavar=entry.name.upper(), help=text)
        return
    flag = "--" + entry.name.replace("_", "-")
    base = _without_none(hint)
    if base is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        return
    kwargs: dict[str, Any] = {"help": text, "default": None}
    if typing.get_origin(base) is Literal:
        kwargs["choices"] = [choice for choice in typing.get_args(base) if choice]
    elif typing.get_origin(base) is tuple:
        kwargs |= {"action": "extend", "nargs": "+", "metavar": meta.get("metavar", "VALUE")}
    else:
        kwargs["type"] = parse_bytes if meta.get("size") else base
        kwargs["metavar"] = meta.get(
            "metavar", "BYTES" if meta.get("size") else base.__name__.upper()
        )
    parser.add_argument(flag, **kwargs)


def _from_text(entry: Any, hint: Any, text: str, variable: str) -> Any:
    base = _without_none(hint)
    if typing.get_origin(base) is tuple:
        return tuple(part for part in text.split(",") if part)
    try:
        return base(text)
    except ValueError:
        raise ConfigError(f"${variable}: expected {base.__name__}, got {text!r}") from None


def _without_none(hint: Any) -> Any:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def check_positive(config: Any, names: str) -> None:
    for name in names.split():
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def check_not_negative(config: Any, names: str) -> None:
    for name in names.split():
        if getattr(config, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} must not be below 0")


def check_port(flag: str, port: int) -> None:
    if not 0 <= port < 65536:
        raise ConfigError(f"{flag} must be from 0 to 65535, got {port}")
