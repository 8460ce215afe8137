"""Test support: adapters as PEFT writes them, made up; and what they mean, merged into weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def linear_of(model: Any, layer: int, module: str) -> Any:
    block = model.model.layers[layer]
    return getattr(block.mlp if hasattr(block.mlp, module) else block.self_attn, module)


def name_of(layer: int, module: str, which: str) -> str:
    block = "mlp" if module in MODULES[4:] else "self_attn"
    return f"base_model.model.model.layers.{layer}.{block}.{module}.lora_{which}.weight"


def random_tensors(
    model: Any, rank: int, modules: tuple[str, ...] = MODULES, seed: int = 0, size: float = 0.4
) -> dict[str, Tensor]:
    """Large enough that forgetting any of them shows."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in range(len(model.model.layers)):
        for module in modules:
            linear = linear_of(model, layer, module)
            for which, shape in (
                ("A", (rank, linear.in_features)),
                ("B", (linear.out_features, rank)),
            ):
                noise = torch.randn(shape, generator=generator) * shape[1] ** -0.5 * size
                made[name_of(layer, module, which)] = noise
    return made


def config_of(rank: int, alpha: float, modules: tuple[str, ...] = MODULES, **more: Any) -> Any:
    """Every field that PEFT 0.18 writes for a plain adapter."""
    return {
        "alora_invocation_tokens": None,
        "alpha_pattern": {},
        "arrow_config": None,
        "auto_mapping": None,
        "base_model_name_or_path": "somebody/something",
        "bias": "none",
        "corda_config": None,
        "ensure_weight_tying": False,
        "eva_config": None,
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "megatron_core": "megatron.core",
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.18.0",
        "qalora_group_size": 16,
        "r": rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": list(modules),
        "target_parameters": None,
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_qalora": False,
        "use_rslora": False,
        **more,
    }


def write_adapter(path: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, path / "adapter_model.safetensors")
    return path


def make_adapter(
    path: Path,
    model: Any,
    *,
    rank: int = 4,
    alpha: float = 8,
    modules: tuple[str, ...] = MODULES,
    seed: int = 0,
    size: float = 0.4,
    **more: Any,
) -> Path:
    tensors = random_tensors(model, rank, modules, seed, size)
    return write_adapter(path, tensors, config_of(rank, alpha, modules, **more))


def merge(model: Any, path: Path) -> Any:
    """The model with the adapter in its weights: W + scale * B A. Changes and returns `model`."""
    from safetensors.torch import load_file

    config = json.loads((path / "adapter_config.json").read_text())
    rank = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(rank) if config["use_rslora"] else rank)
    tensors = load_file(path / "adapter_model.safetensors")
    with torch.no_grad():
        for layer in range(len(model.model.layers)):
            for module in MODULES:
                first = tensors.get(name_of(layer, module, "A"))
                if first is not None:
                    second = tensors[name_of(layer, module, "B")]
                    linear_of(model, layer, module).weight += scale * second @ first
    return model
