"""Engines whose model is held by several processes: same tokens, same refusals, no process left.

The oracle is the engine with one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import HashStore

from common.config import ServeConfig
from common.engine.engine import Engine
from common.errors import ConfigError
from common.instance.parts import RankPlan, build_engine
from common.model.inputs import ForwardInputs
from common.model.shards import Shard
from common.parallel.cores import rank_cores
from common.parallel.group import make_group
from common.parallel.processes import RankProcesses
from common.parallel.step_inputs import flatten, header_of, room_for, unflatten
from common.request import EngineRequest, SamplingParams
from tests.common.model.oracle import make_model, random_tokens, save
from tests.common.parallel.in_processes import in_processes, is_running
from tests.common.parallel.test_sharded_model import SMALL, VOCAB

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    settings = SMALL | {"head_dim": 16, "tie_word_embeddings": True}
    path = save(make_model("Qwen3ForCausalLM", settings), tmp_path_factory.mktemp("model"))
    return ServeConfig(
        model=str(path),
        device="cpu",
        max_model_len=256,
        max_num_seqs=4,
        max_num_batched_tokens=32,
        block_size=8,
        kv_cache_memory=1 << 20,
    )


@pytest.fixture(scope="module")
def expected(config: ServeConfig) -> Iterator[list[list[int]]]:
    parts = build_engine(config)
    yield tokens_of(parts.engine)
    parts.cache.close()


def tokens_of(engine: Engine) -> list[list[int]]:
    """Of eight requests of several lengths, half of them drawn, as many at once as fit."""
    for number in range(8):
        sampling = SamplingParams(max_tokens=12, seed=number, temperature=0.9 * (number % 2))
        prompt = tuple(random_tokens(1 + 13 * number, VOCAB, seed=number))
        engine.add(EngineRequest(f"r{number}", prompt, sampling=sampling))
    found: dict[str, list[int]] = {}
    while engine.has_work():
        for event in engine.step().events:
            found.setdefault(event.request_id, []).extend(event.token_ids)
    return [found[f"r{number}"] for number in range(8)]


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_tokens_are_those_of_one_rank(
    config: ServeConfig, expected: list[list[int]], num_ranks: int
):
    config = replace(config, tensor_parallel_size=num_ranks)
    parts = build_engine(config, in_processes(num_ranks))
    assert parts.ranks is not None
    try:
        assert parts.kv_fingerprint.endswith(f"tensor_parallel={num_ranks}")
        assert parts.cache.layout.num_kv_heads == 2  # one pool for all ranks
        assert tokens_of(parts.engine) == expected
        pids = parts.ranks.pids
        assert len(pids) == num_ranks - 1 and all(map(is_running, pids))
    finally:
        parts.ranks.close()
        parts.ranks.close()
        parts.cache.close()
    assert not any(map(is_running, pids))


def test_a_model_that_ranks_cannot_load_is_refused_in_one_line(config: ServeConfig, tmp_path: Path):
    """By the rank's own words, and nothing is left running."""
    path = Path(config.model)
    for name in ("config.json", "generation_config.json"):
        (tmp_path / name).write_bytes((path / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not at all")
    broken = replace(config, model=str(tmp_path), tensor_parallel_size=2)
    with pytest.raises(ConfigError, match=r"model\.safetensors cannot be read"):
        build_engine(broken, in_processes(2))


@pytest.mark.parametrize(
    "changed, named",
    [
        ({"tensor_parallel_size": 3}, "3 does not divide the 8 attention heads"),
        ({"tensor_parallel_size": 2, "device": "cuda"}, "CUDA|GPU"),
    ],
)
def test_what_cannot_be_is_refused_before_a_process_starts(config, changed, named):
    with pytest.raises(ConfigError, match=named):
        build_engine(replace(config, **changed), RankPlan("no.such.program", [[0]] * 3))


def test_a_rank_that_does_not_come_up_is_refused(config: ServeConfig):
    with pytest.raises(ConfigError, match="rank 1 ended with status 1|could not be started"):
        RankProcesses(config, Path(config.model), CPU, [[0], [0]], "tests.no_such_program")


def test_a_group_waits_for_no_rank_longer_than_its_deadline():
    """A rank that is stopped, not dead: its line stays open."""
    store = HashStore()

    def join(rank: int) -> Any:
        return make_group(store, Shard(rank, 2), CPU, in_order=True, step_s=0.5)

    with ThreadPoolExecutor(2) as threads:
        first, _idle = threads.map(join, range(2), timeout=60.0)
    with pytest.raises(RuntimeError):
        first.sum(torch.ones(3))


def test_inputs_arrive_as_they_were_sent():
    inputs = ForwardInputs(
        token_ids=torch.tensor([5, 6, 7]),
        positions=torch.tensor([0, 1, 9]),
        slots=torch.tensor([16, 17, -1]),
        cu_seqlens=torch.tensor([0, 2, 3], dtype=torch.int32),
        context_lens=torch.tensor([2, 10], dtype=torch.int32),
        block_tables=torch.tensor([[2, 0], [4, 1]], dtype=torch.int32),
        logits_rows=torch.tensor([2]),
        max_query_len=2,
        max_context_len=10,
    )
    header = header_of(inputs)
    room = room_for(header, CPU)
    room.copy_(flatten(inputs))
    found = unflatten(header, room)
    for name in ForwardInputs.__dataclass_fields__:
        sent, got = getattr(inputs, name), getattr(found, name)
        if isinstance(sent, torch.Tensor):
            assert sent.dtype == got.dtype and torch.equal(sent, got), name
        else:
            assert sent == got, name


def test_cores_are_dealt_out_and_too_few_named_ones_refused():
    assert rank_cores([0, 1, 2, 3, 8], 2, are_named=True) == [[0, 1], [2, 3, 8]]
    assert rank_cores([4, 5], 4, are_named=False) == [[4], [5], [4], [5]]
    with pytest.raises(ConfigError, match="--cpu-cores names 2 cores"):
        rank_cores([4, 5], 4, are_named=True)
