"""What LoRA adapters may be called, and the flag that lists those of the start."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from common.errors import ConfigError

FLAG = "--lora-modules"
MAX_LORAS = 1024  # on one instance: proxies are told of all
NAME_RULE = "1 to 64 letters, digits, '.', '_' or '-'"
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FIELDS = {"name", "path", "base_model_name"}


@dataclass(frozen=True, slots=True)
class AdapterSource:
    name: str
    path: str
    parent: str = ""  # shown to clients; "": the served model


def is_adapter_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def parse_lora_modules(values: tuple[str, ...]) -> tuple[AdapterSource, ...]:
    """`NAME=DIR`, or `{"name": …, "path": …, "base_model_name": …}`. Raises ConfigError."""
    found = tuple(_from_json(v) if v.lstrip().startswith("{") else _from_text(v) for v in values)
    names = [source.name for source in found]
    for source in found:
        if not is_adapter_name(source.name):
            raise ConfigError(f"{FLAG}: a name has {NAME_RULE}, not {source.name!r}")
        if not source.path:
            raise ConfigError(f"{FLAG}: {source.name} has no directory")
        if names.count(source.name) > 1:
            raise ConfigError(f"{FLAG} names {source.name} twice")
    return found


def _from_text(value: str) -> AdapterSource:
    name, separator, path = value.partition("=")
    if not separator:
        raise ConfigError(f"{FLAG}: expected NAME=DIR or JSON, got {value!r}")
    return AdapterSource(name, path)


def _from_json(value: str) -> AdapterSource:
    try:
        fields: dict[str, Any] = msgspec.json.decode(value, type=dict[str, str | None])
    except msgspec.MsgspecError as error:
        raise ConfigError(f"{FLAG}: {value!r} is not valid JSON: {error}") from None
    if unknown := fields.keys() - _FIELDS:
        raise ConfigError(f"{FLAG}: {min(unknown)} is not one of {', '.join(sorted(_FIELDS))}")
    name, path = fields.get("name") or "", fields.get("path") or ""
    return AdapterSource(name, path, fields.get("base_model_name") or "")
