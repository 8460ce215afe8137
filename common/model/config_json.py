"""Typed reading of the JSON files beside a checkpoint. Knows no field and no architecture.

Every complaint is one `ConfigError` line that names the file, the field and what was found.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import ConfigError

MAX_INT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class ConfigJson:
    """One JSON object and where it came from. A field that is null counts as absent."""

    source: str  # as it is called in messages: "config.json", "config.json: rope_scaling"
    values: dict[str, Any]

    @classmethod
    def read(cls, path: Path, *, optional: bool = False) -> ConfigJson:
        if optional and not path.is_file():
            return cls(path.name, {})
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"the model directory has no {path.name}") from None
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ConfigError(f"{path.name} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path.name} must hold a JSON object")
        return cls(path.name, values)

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(
        self, name: str, default: int | None = None, least: int = 1, most: int = MAX_INT
    ) -> int:
        """A size or count, from `least` to `most`."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(name, f"must be an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """Finite and above zero."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        if not (math.isfinite(value) and value > 0):
            raise self.error(name, "must be finite and greater than zero")
        return float(value)

    def maybe_number(self, name: str) -> float | None:
        """Finite and not negative, or absent."""
        value = self.values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(name, "must be a number")
        if not (math.isfinite(value) and value >= 0):
            raise self.error(name, "must be finite and not negative")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def text(self, name: str, default: str | None = None) -> str:
        value = self._get(name, default)
        if not isinstance(value, str):
            raise self.error(name, "must be a string")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of strings; absent is empty."""
        value = self.values.get(name) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.error(name, "must be a list of strings")
        return list(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """One id or a list of ids; absent is empty."""
        value = self.values.get(name)
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) for item in ids):
            raise self.error(name, "must be a token id or a list of token ids")
        return tuple(ids)

    def table(self, name: str) -> ConfigJson:
        """A nested object; absent is empty."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self.error(name, "must be an object")
        return ConfigJson(f"{self.source}: {name}", value)

    def error(self, name: str, problem: str) -> ConfigError:
        found = self.values.get(name)
        return ConfigError(f"{self.source}: {name} {problem}, not {_short(found)}")

    def _get(self, name: str, default: object) -> object:
        value = self.values.get(name)
        if value is not None:
            return value
        if default is None:
            raise ConfigError(f"{self.source}: {name} is missing")
        return default


def _short(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
