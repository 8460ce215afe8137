"""Architectures that run through transformers over our paged cache, and are right when they do.

The tests hold each of them against transformers' own eager forward (in chunks, in batches, beyond
its window) and check that logits do not depend on the batch. Some architectures that are not here
would run without complaint and give wrong logits, so everything else is refused. To add one, add a
row and a case in `tests/common/model/test_transformers_fallback.py`; if the tests pass it may stay.
"""

from __future__ import annotations

VERIFIED: dict[str, str] = {
    "ApertusForCausalLM": "Apertus: xIELU, norms of queries and keys",
    "ArceeForCausalLM": "Arcee AFM: squared ReLU",
    "Cohere2ForCausalLM": "Command R7B: windows, layers without positions",
    "CohereForCausalLM": "Command R: attention beside the feed-forward, interleaved rope",
    "Ernie4_5ForCausalLM": "ERNIE 4.5, dense",
    "Exaone4ForCausalLM": "EXAONE 4: norms after, windows",
    "GPT2LMHeadModel": "GPT-2: learned positions",
    "GPTBigCodeForCausalLM": "StarCoder: one KV head",
    "GPTNeoXForCausalLM": "Pythia, GPT-NeoX: part of each head turns",
    "Gemma2ForCausalLM": "Gemma 2: alternating windows, soft caps",
    "Gemma3ForCausalLM": "Gemma 3, text: two rope bases",
    "GemmaForCausalLM": "Gemma",
    "Glm4ForCausalLM": "GLM-4-0414",
    "GlmForCausalLM": "GLM-4",
    "GraniteForCausalLM": "Granite 3: four multipliers",
    "GraniteMoeForCausalLM": "Granite 3 MoE",
    "HeliumForCausalLM": "Helium",
    "HunYuanDenseV1ForCausalLM": "Hunyuan, dense",
    "MinistralForCausalLM": "Ministral: windows by layer",
    "MixtralForCausalLM": "Mixtral: mixture of experts",
    "NemotronForCausalLM": "Nemotron: layer norms, squared ReLU",
    "OPTForCausalLM": "OPT: learned positions",
    "Olmo2ForCausalLM": "OLMo 2: norms after",
    "Olmo3ForCausalLM": "OLMo 3: windows",
    "OlmoForCausalLM": "OLMo: norms without weights, clipped projections",
    "OlmoeForCausalLM": "OLMoE",
    "PersimmonForCausalLM": "Persimmon",
    "Phi3ForCausalLM": "Phi-3, Phi-4",
    "PhiForCausalLM": "Phi-1, Phi-2",
    "Qwen2MoeForCausalLM": "Qwen1.5-MoE, Qwen2-MoE: shared expert",
    "Qwen3MoeForCausalLM": "Qwen3-MoE",
    "SeedOssForCausalLM": "Seed-OSS",
    "SmolLM3ForCausalLM": "SmolLM3: layers without positions",
    "StableLmForCausalLM": "StableLM 2",
    "Starcoder2ForCausalLM": "StarCoder 2: windows",
}
