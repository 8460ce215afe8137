"""The checkpoint on disk: config, generation settings and bfloat16 safetensors."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from scripts.bundled_model.network import Network, NetworkShape
from scripts.bundled_model.tokenizer import END_OF_TEXT, END_OF_TURN, save_tokenizer


def llama_config(shape: NetworkShape, eos_ids: list[int], pad_id: int) -> dict[str, object]:
    """config.json of a LlamaForCausalLM of this shape."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.max_position,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": eos_ids,
        "pad_token_id": pad_id,
        "torch_dtype": "bfloat16",
    }


def write_json(path: Path, content: dict[str, object]) -> None:
    """Write content as indented JSON with a final line end."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def save_checkpoint(network: Network, tokenizer: Tokenizer, directory: Path) -> None:
    """Write everything a Hugging Face loader needs into an existing directory."""
    vocabulary = tokenizer.get_vocab()
    eos_ids = [vocabulary[END_OF_TURN], vocabulary[END_OF_TEXT]]
    pad_id = vocabulary[END_OF_TEXT]
    weights = {
        name: parameter.detach().to(torch.bfloat16).contiguous()
        for name, parameter in network.named_parameters()
    }
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    write_json(directory / "config.json", llama_config(network.shape, eos_ids, pad_id))
    generation: dict[str, object] = {
        "do_sample": False,
        "eos_token_id": eos_ids,
        "pad_token_id": pad_id,
    }
    write_json(directory / "generation_config.json", generation)
    save_tokenizer(tokenizer, directory, network.shape.max_position)
