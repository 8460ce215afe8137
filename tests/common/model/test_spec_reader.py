"""config.json in its many spellings, and every way it can be wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, Qwen2Config

from common.errors import ConfigError
from common.model.spec import LlamaShape, ModelSpec, SamplingDefaults
from common.model.spec_reader import read_spec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 100,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def write(path: Path, config: Any, generation: Any = None) -> Path:
    (path / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return path


def shape_of(spec: ModelSpec) -> LlamaShape:
    assert spec.llama is not None
    return spec.llama


def test_sizes_and_defaults(tmp_path: Path):
    spec = read_spec(write(tmp_path, LLAMA))
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 2, 16)
    assert (spec.dtype, spec.max_model_len, spec.tied_embeddings) == ("bfloat16", 256, False)
    assert (spec.bos_token_id, spec.eos_token_ids) == (1, (2,))
    assert shape_of(spec).rope.base == 10000.0
    assert shape_of(spec).windows == (None, None)
    assert spec.default_sampling == SamplingDefaults()


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_both_spellings_of_rope_and_dtype_mean_the_same(tmp_path: Path, kind: str):
    scaling = {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    old = LLAMA | {"rope_theta": 5e5, "rope_scaling": {"type": kind} | scaling}
    new = LLAMA | {"rope_parameters": {"rope_type": kind, "rope_theta": 5e5} | scaling}
    new["dtype"] = new.pop("torch_dtype")
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    spec = read_spec(write(tmp_path / "old", old))
    assert spec == read_spec(write(tmp_path / "new", new))
    assert shape_of(spec).rope.scaling == kind
    assert spec.max_model_len == {"linear": 1024, "llama3": 256, "yarn": 256}[kind]


def test_what_transformers_saves_is_read(tmp_path: Path):
    """Defaults that transformers fills in or leaves out, held against its own config object."""
    config = Qwen2Config(
        architectures=["Qwen2ForCausalLM"],
        num_hidden_layers=30,
        use_sliding_window=True,
        tie_word_embeddings=True,
    )
    config.save_pretrained(tmp_path)
    spec = read_spec(tmp_path)
    assert spec.hidden_size == config.hidden_size
    assert spec.max_model_len == config.max_position_embeddings
    assert spec.tied_embeddings
    assert config.layer_types is not None
    windows = [4096 if kind == "sliding_attention" else None for kind in config.layer_types]
    assert list(shape_of(spec).windows) == windows
    assert shape_of(spec).windows[27:29] == (None, 4096)
    assert shape_of(spec).qkv_bias and not shape_of(spec).o_bias


def test_an_old_llama_config_without_kv_heads_or_head_dim(tmp_path: Path):
    config = {k: v for k, v in LLAMA.items() if k != "num_key_value_heads"} | {"head_dim": None}
    spec = read_spec(write(tmp_path, config))
    oracle = LlamaConfig(hidden_size=64, num_attention_heads=4)
    assert spec.num_kv_heads == oracle.num_key_value_heads == 4
    assert spec.head_dim == oracle.head_dim == 16


@pytest.mark.parametrize(
    ("window", "expected"),
    [({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 7}, 7)],
)
def test_mistral_windows(tmp_path: Path, window: dict[str, Any], expected: int | None):
    config = LLAMA | {"architectures": ["MistralForCausalLM"]} | window
    assert shape_of(read_spec(write(tmp_path, config))).windows == (expected, expected)


def test_end_ids_and_sampling_defaults_of_the_generation_config(tmp_path: Path):
    generation = {"eos_token_id": [5, 2, 900], "temperature": 0.6, "top_k": 20, "top_p": 0.95}
    spec = read_spec(write(tmp_path, LLAMA, generation))
    assert spec.eos_token_ids == (5, 2)  # 900 is outside the vocabulary
    assert spec.default_sampling == SamplingDefaults(temperature=0.6, top_k=20, top_p=0.95)


def test_max_model_len_may_only_shorten(tmp_path: Path):
    write(tmp_path, LLAMA)
    assert read_spec(tmp_path, 100).max_model_len == 100
    for wrong in (0, -1, 257):
        with pytest.raises(ConfigError, match="max_model_len must be from 1 to 256"):
            read_spec(tmp_path, wrong)


QWEN = {"architectures": ["Qwen2ForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "architectures is missing"),
        ({"architectures": "LlamaForCausalLM"}, "architectures must be a list of strings"),
        ({"architectures": ["BertForMaskedLM"]}, "is not supported; supported are"),
        ({"vocab_size": None}, "vocab_size is missing"),
        ({"vocab_size": 0}, "vocab_size must be an integer from 1"),
        ({"vocab_size": True}, "vocab_size must be an integer from 1 .* not true"),
        ({"hidden_size": "64"}, 'hidden_size must be an integer .* not "64"'),
        ({"hidden_size": 66}, "hidden_size must be divisible by the 4 attention heads"),
        ({"hidden_size": 2**40}, "hidden_size must be an integer from 1 to"),
        ({"num_hidden_layers": -3}, "num_hidden_layers must be an integer"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be an integer from 1 to 4096"),
        ({"num_attention_heads": 0}, "num_attention_heads must be"),
        ({"num_key_value_heads": 3}, "num_key_value_heads must divide the 4 attention heads"),
        ({"head_dim": 15}, "head_dim must be even"),
        ({"intermediate_size": 1.5}, "intermediate_size must be an integer"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be finite and greater than zero"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps must be finite"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps must be a number"),
        ({"hidden_act": "gelu"}, "hidden_act must be silu"),
        ({"torch_dtype": "int8"}, "torch_dtype must be one of bfloat16"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
        ({"eos_token_id": "</s>"}, "eos_token_id must be a token id"),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised weights \(awq\)"),
        ({"rope_theta": -1}, "rope_theta must be finite and greater than zero"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_scaling": {"type": "mrope"}}, "'mrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        ({"rope_parameters": {"full_attention": {}}}, "one set of values per layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor must be 1"),
        (QWEN | {"layer_types": ["full_attention"]}, "layer_types must have 2 entries"),
        (QWEN | {"layer_types": ["full_attention", "linear"]}, "layer_types may name"),
        (QWEN | {"layer_types": ["full_attention", "sliding_attention"]}, "no window is set"),
    ],
)
def test_a_wrong_field_is_one_clear_line(tmp_path: Path, changes: dict[str, Any], message: str):
    write(tmp_path, LLAMA | changes)
    with pytest.raises(ConfigError, match=message) as caught:
        read_spec(tmp_path)
    assert "\n" not in caught.value.message
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff"])
def test_a_broken_file(tmp_path: Path, content: str):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_spec(tmp_path)


def test_no_file(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_spec(tmp_path)


def test_the_native_family_imports_neither_torch_nor_transformers(tmp_path: Path):
    write(tmp_path, LLAMA)
    program = (
        "import pathlib, sys\n"
        "from common.model.spec_reader import read_spec\n"
        "read_spec(pathlib.Path(sys.argv[1]))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=60)
