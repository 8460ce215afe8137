"""Rotary position embedding as data, read from config.json. Knows no tensors: `rope.py` has those.

Both spellings are read: `rope_theta` + `rope_scaling` (transformers 4) and `rope_parameters`
(transformers 5). `dynamic` is refused: its base depends on the longest sequence seen so far, so
keys already in the cache would have been turned by another angle than new queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from common.errors import ConfigError
from common.model.config_json import ConfigJson

Scaling = Literal["default", "linear", "llama3", "yarn"]
SCALINGS: tuple[Scaling, ...] = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """How positions turn queries and keys; fields a scaling does not use keep their default."""

    base: float
    scaling: Scaling = "default"
    factor: float = 1.0
    original_max_len: int = 0  # llama3, yarn: context length before it was stretched
    low_freq_factor: float = 1.0  # llama3
    high_freq_factor: float = 4.0  # llama3
    beta_fast: float = 32.0  # yarn
    beta_slow: float = 1.0  # yarn
    truncate: bool = True  # yarn: ramp borders are whole dimensions
    attention_factor: float = 1.0  # yarn: scales cos and sin


def read_rope(config: ConfigJson, max_position: int) -> RopeSpec:
    """`max_position`: the config's max_position_embeddings."""
    table = config.table("rope_scaling" if config.values.get("rope_scaling") else "rope_parameters")
    if any(isinstance(value, dict) for value in table.values.values()):
        raise ConfigError(f"{table.source}: one set of values per layer type is not supported")
    base = (table if table.has("rope_theta") else config).number("rope_theta", 10000.0)
    for place in (table, config):
        if place.number("partial_rotary_factor", 1.0) != 1.0:
            raise place.error("partial_rotary_factor", "must be 1")
    name = table.text("rope_type", table.text("type", "default"))
    scaling = next((known for known in SCALINGS if known == name), None)
    if scaling is None:
        raise ConfigError(f"{table.source}: type {name!r} is not supported, only {SCALINGS}")
    if scaling == "default":
        return RopeSpec(base)
    if scaling == "linear":
        return RopeSpec(base, scaling, table.number("factor"))
    outer = config if config.has("original_max_position_embeddings") else table
    original = outer.integer("original_max_position_embeddings", max_position)
    if scaling == "yarn":
        return _read_yarn(table, base, original, max_position)
    low, high = table.number("low_freq_factor"), table.number("high_freq_factor")
    if high <= low:
        raise table.error("high_freq_factor", "must be greater than low_freq_factor")
    return RopeSpec(
        base,
        scaling,
        table.number("factor"),
        original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


def _read_yarn(table: ConfigJson, base: float, original: int, max_position: int) -> RopeSpec:
    factor = table.number("factor", max_position / original)
    return RopeSpec(
        base,
        "yarn",
        factor,
        original,
        beta_fast=table.number("beta_fast", 32.0),
        beta_slow=table.number("beta_slow", 1.0),
        truncate=table.flag("truncate", True),
        attention_factor=_yarn_attention_factor(table, factor),
    )


def _yarn_attention_factor(table: ConfigJson, factor: float) -> float:
    """Given, or 0.1 ln(factor) + 1 (arXiv:2309.00071, section 3.4), or DeepSeek's ratio of two."""
    given = table.maybe_number("attention_factor")
    if given is not None:
        return given

    def magnitude(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    mscale, mscale_all = table.maybe_number("mscale"), table.maybe_number("mscale_all_dim")
    if mscale and mscale_all:
        return magnitude(mscale) / magnitude(mscale_all)
    return magnitude(1.0)


def stretched_max_len(rope: RopeSpec, max_position: int) -> int:
    """Longest context: linear and yarn configs state the length before stretching."""
    if rope.scaling == "linear":
        return int(max_position * rope.factor)
    if rope.scaling == "yarn":
        return max(max_position, int(rope.original_max_len * rope.factor))
    return max_position
