"""What each request asks: a pure function of settings and seed, so that two servers get the very
same workload.

Knows nothing of time, HTTP or results. The first k requests of a data set do not depend on how many
are made: warm-up requests are taken from behind the measured ones and share nothing with them but
the common prefix.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.vocabulary import Vocabulary
from common.errors import ConfigError

_STREAM = 0  # see arrivals._STREAM
_PREFIX_STREAM = 2

Messages = tuple[dict[str, Any], ...]
Prompt = tuple[int, ...] | str | Messages
"""Token ids or text for /v1/completions; text or messages for /v1/chat/completions."""


@dataclass(frozen=True, slots=True)
class BenchRequest:
    index: int
    prompt: Prompt
    input_len: int | None  # tokens, where we know; the server's count wins
    output_len: int  # most tokens to generate

    @property
    def is_messages(self) -> bool:
        return isinstance(self.prompt, tuple) and any(isinstance(m, dict) for m in self.prompt)


@dataclass(frozen=True, slots=True)
class RandomShape:
    """Lengths are drawn evenly from `len * (1 - range_ratio)` to `len * (1 + range_ratio)`; the
    prefix is not varied.
    """

    input_len: int
    output_len: int
    prefix_len: int = 0
    range_ratio: float = 0.0

    def __post_init__(self) -> None:
        if self.input_len < 1 or self.output_len < 1:
            raise ConfigError("--input-len and --output-len must be at least 1")
        if self.prefix_len < 0:
            raise ConfigError("--random-prefix-len must not be negative")
        if not 0.0 <= self.range_ratio < 1.0:
            raise ConfigError("--random-range-ratio must be at least 0 and less than 1")


def random_requests(
    count: int, shape: RandomShape, vocabulary: Vocabulary, seed: int, *, as_text: bool
) -> list[BenchRequest]:
    """Prompts of random tokens, after `shape.prefix_len` tokens that all share.

    Token ids give exact lengths with any server. Text (for chat) has the wanted length only as far
    as the vocabulary can tell, and the server's chat template adds its own tokens.
    """
    prefix = vocabulary.draw(np.random.default_rng([seed, _PREFIX_STREAM]), shape.prefix_len)
    random = np.random.default_rng([seed, _STREAM])
    requests = []
    for index in range(count):
        input_len = _vary(random, shape.input_len, shape.range_ratio)
        output_len = _vary(random, shape.output_len, shape.range_ratio)
        ids = prefix + vocabulary.draw(random, input_len)
        prompt: Prompt = vocabulary.text_of(ids) if as_text else tuple(ids)
        requests.append(BenchRequest(index, prompt, len(ids), output_len))
    return requests


def _vary(random: np.random.Generator, length: int, ratio: float) -> int:
    low = max(1, round(length * (1.0 - ratio)))
    return int(random.integers(low, round(length * (1.0 + ratio)) + 1))


def text_requests(
    count: int, path: Path, output_len: int, vocabulary: Vocabulary | None, *, chat: bool
) -> list[BenchRequest]:
    """Prompts from a file in its order, from the top again when it is too short.

    One prompt per line, or, when the name ends in .jsonl, one object per line with `prompt` or
    `messages` and maybe `output_len`.
    """
    parse = _parse_object if path.suffix == ".jsonl" else _parse_line
    rows = [
        (parse(line, number), number) for number, line in enumerate(_lines(path), 1) if line.strip()
    ]
    if not rows:
        raise ConfigError("--dataset-path holds no prompts")
    requests = []
    for index in range(count):
        (prompt, wanted), number = rows[index % len(rows)]
        request = BenchRequest(index, prompt, _length(prompt, vocabulary), wanted or output_len)
        if request.is_messages and not chat:
            raise _bad(number, "`messages` need --endpoint /v1/chat/completions")
        if chat and isinstance(prompt, tuple) and not request.is_messages:
            raise _bad(number, "token ids need --endpoint /v1/completions")
        requests.append(request)
    return requests


def _parse_line(line: str, number: int) -> tuple[Prompt, int | None]:
    return line, None


def _parse_object(line: str, number: int) -> tuple[Prompt, int | None]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise _bad(number, f"not JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise _bad(number, "expected an object")
    wanted = row.get("output_len")
    if wanted is not None and not (_is_count(wanted) and wanted >= 1):
        raise _bad(number, "`output_len` must be a whole number of at least 1")
    return _parse_prompt(row, number), wanted


def _parse_prompt(row: dict[str, Any], number: int) -> Prompt:
    prompt, messages = row.get("prompt"), row.get("messages")
    if (prompt is None) == (messages is None):
        raise _bad(number, "give either `prompt` or `messages`")
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt and all(_is_count(token) for token in prompt):
        return tuple(prompt)
    if isinstance(messages, list) and messages and all(isinstance(m, dict) for m in messages):
        return tuple(messages)
    raise _bad(number, "`prompt` must be text or token ids, `messages` a list of objects")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _length(prompt: Prompt, vocabulary: Vocabulary | None) -> int | None:
    if isinstance(prompt, str):
        return None if vocabulary is None else vocabulary.count(prompt)
    return None if any(isinstance(part, dict) for part in prompt) else len(prompt)


def _bad(number: int, why: str) -> ConfigError:
    return ConfigError(f"--dataset-path line {number}: {why}")


def _lines(path: Path) -> Iterator[str]:
    try:
        # Not splitlines(): a JSON line may hold U+2028 and its kin.
        yield from path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --dataset-path: {error}") from error
