"""An adapter_config.json as PEFT writes it: what we can apply, or a refusal that names the field.

A field that is not known here passes only if it asks for nothing: what a newer PEFT means by it
could change every answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from common.errors import ConfigError

FILE = "adapter_config.json"
MAX_BYTES = 1 << 20
MAX_NAMES = 4096

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
MODULES = ATTENTION + FEED_FORWARD

_READ = frozenset(("peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "task_type"))
# They say how the adapter was trained or where; nothing that is computed here depends on them.
_IGNORED = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "inference_mode"),
        *("lora_dropout", "ensure_weight_tying", "runtime_config", "qalora_group_size"),
        # Which modules it has: the tensors themselves say so.
        *("layers_pattern", "layers_to_transform", "exclude_modules"),
    )
)


def _no_bias(value: Any) -> bool:
    return isinstance(value, str) and value == "none"


def _keeps_base_weights(value: Any) -> bool:
    """Others (PiSSA, OLoRA, LoftQ, …) change the model's own weights when training begins."""
    return value in (True, False, "gaussian", "orthogonal", "eva")


_HARMLESS: dict[str, Callable[[Any], bool]] = {
    "bias": _no_bias,
    "init_lora_weights": _keeps_base_weights,
    "eva_config": lambda value: True,  # only of the initialisation
    "megatron_core": lambda value: True,  # only of `megatron_config`
}


@dataclass(frozen=True, slots=True)
class PeftConfig:
    rank: int
    scale: float  # of the product of the two small matrices


def read_peft_config(data: bytes, max_rank: int) -> PeftConfig:
    """Raises ConfigError, in one line."""
    try:
        values = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{FILE} cannot be read: {str(error)[:100]}") from None
    if values.get("peft_type") != "LORA":
        raise _refused("peft_type", values.get("peft_type"), "must be LORA")
    if values.get("task_type") not in (None, "CAUSAL_LM"):
        raise _refused("task_type", values["task_type"], "must be CAUSAL_LM")
    for name, value in values.items():
        _check_rest(name, value)
    _check_targets(values.get("target_modules"))
    return _scaled(values, max_rank)


def _check_rest(name: str, value: Any) -> None:
    if name in _READ or name in _IGNORED or value in (None, False, 0, "", [], {}):
        return
    harmless = _HARMLESS.get(name)
    if harmless is None or not harmless(value):
        raise _refused(name[:64], value, "is not supported")


def _check_targets(targets: Any) -> None:
    """A text is a regular expression, which is left to the tensors' names; a list is checked."""
    if targets is None or isinstance(targets, str):
        return
    if not isinstance(targets, list) or len(targets) > MAX_NAMES:
        raise _refused("target_modules", targets, "must be a list of names, or a text")
    for name in targets:
        if not isinstance(name, str) or name.rpartition(".")[2] not in MODULES:
            raise _refused("target_modules", name, f"may name {', '.join(MODULES)} only")


def _scaled(values: dict[str, Any], max_rank: int) -> PeftConfig:
    rank, alpha = values.get("r"), values.get("lora_alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise _refused("r", rank, "must be an integer of at least 1")
    if rank > max_rank:
        raise ConfigError(f"{FILE}: r is {rank}, --max-lora-rank allows {max_rank}")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise _refused("lora_alpha", alpha, "must be a number")
    stabilized = values.get("use_rslora") or False
    if not isinstance(stabilized, bool):
        raise _refused("use_rslora", stabilized, "must be true or false")
    return PeftConfig(rank, alpha / (math.sqrt(rank) if stabilized else rank))


def _refused(name: str, value: Any, problem: str) -> ConfigError:
    shown = msgspec.json.encode(value).decode()
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ConfigError(f"{FILE}: {name} {problem}, not {shown}")
