"""transformers on the same shape and GPU, in the same run: generate() and continuous batching."""

from __future__ import annotations

import time
from typing import Any

import torch


def transformers_model(num_layers: int = 32) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 16384,
        "rope_theta": 500000.0,
        "eos_token_id": None,
        "pad_token_id": 0,
        "bos_token_id": None,
    }
    config = LlamaConfig(**shape)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model: Any = LlamaForCausalLM(config)
            return model.eval()
        finally:
            torch.set_default_dtype(torch.float32)


def generate_tokens_s(model: Any, num_seqs: int, context: int, num_tokens: int) -> float:
    """Output tokens per second of generate(), static batch; the prompt's time is taken off."""

    def run(count: int) -> float:
        prompt = torch.randint(1, 128000, (num_seqs, context), device="cuda")
        torch.cuda.synchronize()
        began = time.monotonic()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
        )
        torch.cuda.synchronize()
        return time.monotonic() - began

    run(2)
    return num_seqs * (num_tokens - 1) / (run(num_tokens) - run(1))


def continuous_batching_tokens_s(model: Any, num_seqs: int, context: int, num_tokens: int) -> float:
    """Output tokens per second of generate_batch(), prompts included."""
    import transformers

    make_config: Any = transformers.GenerationConfig
    config = make_config(max_new_tokens=num_tokens, eos_token_id=-1, do_sample=False)
    prompts = torch.randint(1, 128000, (num_seqs, context)).tolist()
    model.set_attn_implementation("paged|sdpa")
    model.generate_batch(inputs=prompts[:1], generation_config=config)
    torch.cuda.synchronize()
    began = time.monotonic()
    model.generate_batch(inputs=prompts, generation_config=config)
    torch.cuda.synchronize()
    return num_seqs * num_tokens / (time.monotonic() - began)
