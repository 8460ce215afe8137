"""The engine with a real network: tokens equal to transformers', and to its own elsewhere."""

from __future__ import annotations

import msgspec
import pytest
import torch

from common.engine.engine import Engine
from common.engine.interface import EngineSettings
from common.engine.kv_cache import KVCache, KVLayout, kv_fingerprint
from common.model.loader import load_model
from tests.common.engine.standin_model import make_request, must, run, tokens_of
from tests.common.model.oracle import make_model, random_tokens, save

CPU = torch.device("cpu")
BLOCK = 8
LENGTHS = [1, BLOCK - 1, BLOCK, BLOCK + 1, 45, 90]
NUM_TOKENS = 64
SHAPE = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 160,
    "eos_token_id": None,
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(directory, prompts, what transformers generates greedily)."""
    model = make_model("LlamaForCausalLM", SHAPE)
    path = save(model, tmp_path_factory.mktemp("llama"))
    prompts = {length: random_tokens(length, 211, seed=length) for length in LENGTHS}
    answers = {}
    for length, prompt in prompts.items():
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NUM_TOKENS
        )
        answers[length] = out[0, length:].tolist()
    return path, prompts, answers


def make_llama_engine(path, *, dtype="float32", num_blocks=200, budget=24, caching=True):
    model = load_model(path, dtype=dtype, device=CPU)
    layout = KVLayout.of(model.spec, BLOCK)
    limits = EngineSettings(
        max_model_len=model.spec.max_model_len,
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        enable_prefix_caching=caching,
    )
    cache = KVCache(layout, num_blocks, CPU)
    return Engine(model, cache, limits, (), kv_fingerprint("llama", layout, "k"))


@pytest.mark.parametrize(("num_blocks", "is_tight"), [(200, False), (24, True)])
def test_greedy_equals_transformers(checkpoint, num_blocks, is_tight):
    """In one batch, chunked prefill, then again as prefix hits; on a tiny pool with preemption."""
    path, prompts, answers = checkpoint
    engine = make_llama_engine(path, num_blocks=num_blocks)
    for turn in range(2):
        for length, prompt in prompts.items():
            engine.add(make_request(f"{length}", prompt, NUM_TOKENS))
        events = run(engine)
        for length in prompts:
            assert tokens_of(events[f"{length}"]) == answers[length]
        if turn and not is_tight:
            assert events["90"][0].num_cached_tokens == 88
    assert (engine.ledger()["preemptions"] > 0) is is_tight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_seeded_stream_is_the_same_wherever_it_runs(checkpoint, dtype):
    """Alone and whole; in a storm on a tiny pool; handed over block by block to another engine."""
    path, prompts, _ = checkpoint
    request = make_request("me", prompts[45], 40, temperature=0.9, top_p=0.95, seed=17, priority=1)
    lonely = make_llama_engine(path, dtype=dtype, budget=500, caching=False)
    lonely.add(request)
    expected = tokens_of(run(lonely)["me"])

    busy = make_llama_engine(path, dtype=dtype, num_blocks=24)
    for length, prompt in prompts.items():
        busy.add(make_request(f"{length}", prompt, 30, temperature=1.0, seed=length))
    busy.add(request)
    assert tokens_of(run(busy)["me"]) == expected
    assert busy.ledger()["preemptions"] > 0

    source, target = (make_llama_engine(path, dtype=dtype, budget=16) for _ in range(2))
    source.add(request, offer=True)
    blocks, events = [], []
    while source.has_work():
        result = source.step()
        blocks += [block for filled in result.filled for block in filled.block_ids]
        events += result.events
    mine = must(target.reserve(len(blocks)))
    target.cache.tensor[mine] = source.cache.tensor[blocks]
    target.add(make_request("other", prompts[90], 20))
    target.adopt(msgspec.structs.replace(request, output_token_ids=events[0].token_ids), mine)
    assert tokens_of([*events, *run(target)["me"]]) == expected


def test_logprobs_do_not_depend_on_the_company(checkpoint):
    path, prompts, _ = checkpoint
    request = make_request("me", prompts[45], 12, logprobs=3, prompt_logprobs=2)
    alone = make_llama_engine(path, budget=500)
    alone.add(request)
    expected = run(alone)["me"]
    crowd = make_llama_engine(path, budget=11)
    for length, prompt in prompts.items():
        crowd.add(make_request(f"{length}", prompt, 20))
    crowd.add(request)
    events = run(crowd)["me"]
    assert [event.logprobs for event in events] == [event.logprobs for event in expected]
    assert events[0].prompt_logprobs == expected[0].prompt_logprobs
    assert len(events[0].prompt_logprobs) == 45


def test_the_context_can_be_filled_to_the_last_token(checkpoint):
    path, *_ = checkpoint
    engine = make_llama_engine(path)
    longest = engine.settings.max_model_len
    engine.add(make_request("r", random_tokens(longest - 1, 211, seed=3), 1))
    assert len(tokens_of(run(engine)["r"])) == 1
