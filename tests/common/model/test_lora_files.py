"""What is not an adapter that we can apply is refused, by name, before it is believed."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConfigError, PermissionDenied
from common.model.loader import load_model
from common.model.lora.load import directory_inside, load_adapter
from common.model.lora.peft_config import read_peft_config
from common.model.lora.tensors import read_tensors
from tests.common.model.lora_files import (
    config_of,
    make_adapter,
    name_of,
    random_tensors,
    write_adapter,
)
from tests.common.model.oracle import make_model, save

CPU = torch.device("cpu")
SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """(transformers' model, our spec of it)"""
    model = make_model("LlamaForCausalLM", SHAPE)
    path = save(model, tmp_path_factory.mktemp("base"))
    return model, load_model(path, dtype="float32", device=CPU).spec


def load(path, spec, **options):
    return load_adapter(path, spec, **{"max_rank": 8, "device": CPU, **options})


REFUSED_FIELDS = [
    ("peft_type", "IA3"),
    ("task_type", "SEQ_CLS"),
    ("use_dora", True),
    ("use_qalora", True),
    ("bias", "all"),
    ("lora_bias", True),
    ("modules_to_save", ["lm_head"]),
    ("rank_pattern", {"q_proj": 2}),
    ("alpha_pattern", {"q_proj": 2}),
    ("target_parameters", ["x"]),
    ("target_modules", ["q_proj", "embed_tokens"]),
    ("target_modules", ["lm_head"]),
    ("target_modules", 7),
    ("trainable_token_indices", [1]),
    ("layer_replication", [[0, 2]]),
    ("fan_in_fan_out", True),
    ("init_lora_weights", "pissa_niter_4"),
    ("init_lora_weights", "olora"),
    ("loftq_config", {"loftq_bits": 4}),
    ("alora_invocation_tokens", [1, 2]),
    ("megatron_config", {"x": 1}),
    ("something_new", "on"),
    ("r", 0),
    ("r", True),
    ("r", "8"),
    ("lora_alpha", "16"),
    ("lora_alpha", None),
    ("use_rslora", "yes"),
]


@pytest.mark.parametrize(("name", "value"), REFUSED_FIELDS)
def test_a_config_that_asks_for_more_is_refused_by_name(name, value):
    data = json.dumps(config_of(4, 8.0) | {name: value}).encode()
    with pytest.raises(ConfigError, match=name):
        read_peft_config(data, max_rank=8)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"init_lora_weights": "gaussian"},
        {"target_modules": "all.*proj"},
        {"something_new": None},
        {"task_type": None},
    ],
)
def test_a_plain_config_is_read(more):
    found = read_peft_config(json.dumps(config_of(4, 8.0) | more).encode(), max_rank=8)
    assert (found.rank, found.scale) == (4, 2.0)


def test_a_stabilized_rank_scales_by_its_root():
    data = json.dumps(config_of(4, 8.0, use_rslora=True)).encode()
    assert read_peft_config(data, max_rank=8).scale == 4.0


def test_a_rank_above_the_limit_names_the_flag():
    with pytest.raises(ConfigError, match="--max-lora-rank"):
        read_peft_config(json.dumps(config_of(9, 8.0)).encode(), max_rank=8)


@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_config_or_an_error(data):
    with pytest.raises(ConfigError):
        read_peft_config(data, max_rank=8)


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


CHANGES = {
    "lora_A and lora_B": lambda t: without(t, name_of(1, "k_proj", "B")),
    "no module": lambda t: t | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)},
    "module that can": lambda t: (
        t | {name_of(0, "q_proj", "A").replace("self_attn", "mlp"): torch.zeros(4, 32)}
    ),
    "2 layers": lambda t: t | {name_of(2, "q_proj", "A"): torch.zeros(4, 32)},
    "has shape": lambda t: t | {name_of(0, "q_proj", "A"): torch.zeros(5, 32)},
    "dtype": lambda t: t | {name_of(0, "q_proj", "A"): torch.zeros(4, 32, dtype=torch.float64)},
    "not finite": lambda t: t | {name_of(0, "q_proj", "A"): torch.full((4, 32), torch.inf)},
    "magnitude|module": lambda t: (
        t
        | {
            name_of(0, "q_proj", "A").replace("lora_A.weight", "lora_magnitude_vector"): (
                torch.zeros(4)
            )
        }
    ),
}


@pytest.mark.parametrize("message", CHANGES)
def test_tensors_that_do_not_fit_are_refused(message, base, tmp_path):
    model, spec = base
    tensors = CHANGES[message](random_tensors(model, 4))
    path = write_adapter(tmp_path / "x", tensors, config_of(4, 8.0))
    with pytest.raises(ConfigError, match=message):
        load(path, spec)


def test_no_tensors_no_adapter(base, tmp_path):
    path = write_adapter(tmp_path / "x", {}, config_of(4, 8.0))
    with pytest.raises(ConfigError, match="no tensors"):
        load(path, base[1])


def test_half_precision_files_are_read(base, tmp_path):
    model, spec = base
    tensors = {name: value.bfloat16() for name, value in random_tensors(model, 4).items()}
    adapter = load(write_adapter(tmp_path / "x", tensors, config_of(4, 8.0)), spec)
    assert adapter.rank == 4
    assert len(adapter.deltas) == 2 * 4


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(data, base, tmp_path_factory):
    model, spec = base
    path = tmp_path_factory.getbasetemp() / "damaged"
    if not path.exists():
        make_adapter(path, model, rank=4)
    body = bytearray((path / "adapter_model.safetensors").read_bytes())
    header = struct.unpack_from("<Q", body)[0]
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, 8 + header - 1))] = data.draw(st.integers(0, 255))
    try:
        read_tensors(body, spec, spec.llama, 4)
    except ConfigError as error:
        assert len(str(error)) < 500


def test_a_file_that_is_too_large_is_not_read(base, tmp_path):
    model, spec = base
    path = make_adapter(tmp_path / "x", model)
    os.truncate(path / "adapter_model.safetensors", 1 << 40)  # sparse: no disk has room for it
    with pytest.raises(ConfigError, match="bytes"):
        load(path, spec)


def test_other_formats_and_other_kinds_of_file_are_refused(base, tmp_path):
    model, spec = base
    path = make_adapter(tmp_path / "x", model)
    weights = path / "adapter_model.safetensors"
    weights.rename(path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="other formats"):
        load(path, spec)
    os.mkfifo(weights)
    with pytest.raises(ConfigError, match="regular file"):
        load(path, spec)


def test_a_path_stays_inside_of_the_root(base, tmp_path):
    model, spec = base
    root, outside = tmp_path / "root", tmp_path / "outside"
    inside = make_adapter(root / "team" / "x", model)
    make_adapter(outside, model)
    (root / "link").symlink_to(outside)
    (root / "alias").symlink_to(inside)
    make_adapter(root / "mixed", model)
    (root / "mixed" / "adapter_model.safetensors").unlink()
    (root / "mixed" / "adapter_model.safetensors").symlink_to(outside / "adapter_model.safetensors")
    for fine in ("team/x", str(inside), "alias", "team/../team/x"):
        assert load(directory_inside(root, fine), spec, root=root).rank == 4
    for escape in (
        "../outside",
        str(outside),
        "link",
        "/proc/self",
        "../nowhere",
        "/",
        "team/../..",
    ):
        with pytest.raises(PermissionDenied, match="--lora-root"):
            directory_inside(root, escape)
    with pytest.raises(PermissionDenied, match="links included"):
        load(directory_inside(root, "mixed"), spec, root=root)
    for other in (
        "nowhere",
        "org/name",
        "team/x/adapter_config.json",
        "https://h/x",
        "s3://b",
        "\0",
    ):
        with pytest.raises(ConfigError, match="lora_path"):
            directory_inside(root, other)
