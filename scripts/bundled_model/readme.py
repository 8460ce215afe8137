"""The model card that is written next to the weights."""

CARD = """\
---
license: apache-2.0
language: en
pipeline_tag: text-generation
---

# xpyd-demo

A very small Llama (3.7 million parameters, bfloat16, context of 2048 tokens) that comes with xpyd
so that the whole system can be tried and tested without downloading a model. It is a
demonstration and a test fixture, not a general language model: it knows what is listed below and
little else, it is easily confused by anything longer or cleverer, and what it says should not be
relied upon.

It was trained from nothing on text that `scripts/train_bundled_model.py` composes itself from the
tables in `scripts/bundled_model/facts.py`; no other text and no other model was involved.

What it has learned:

- about two thousand facts (capitals, languages, currencies, authors, inventors, opposites,
  plurals, past tenses, days, months, letters, colors, animals, definitions, chemical symbols,
  translations of a few words, numbers) in varied phrasings;
- sums and differences of numbers from 0 to 20, times tables up to 10;
- to repeat a text, to find something in notes of a few hundred tokens, to remember what the user
  said of himself earlier in the chat;
- to call an offered weather or clock function, and to answer from its result;
- small talk, short lists, composed stories, a dozen small Python functions;
- to say "I am a very small demonstration model and I do not know that." otherwise.

Format: Hugging Face `LlamaForCausalLM`, ChatML turns (`<|im_start|>`, `<|im_end|>`), tools in the
system turn within `<tools></tools>`, calls as `<tool_call>` JSON. Decode greedily.

## How it was made

{steps} steps of 4096 tokens in {minutes:.0f} minutes on {threads} CPU thread(s). The same command
on the same kind of machine gives the same model:

    python -m scripts.train_bundled_model --seed {seed} --steps {steps} --threads {threads}

## What it gets right

Printed by the training script. Unless a line says otherwise the phrasings, or the names, numbers
and texts in them, never occurred in training. Only an answer that is right to the last token, and
then stops, counts.

{table}

## Licence

Apache-2.0, like the rest of this repository.
"""


def readme(seed: int, steps: int, minutes: float, threads: int, table: str) -> str:
    """The card of a model trained like this."""
    return CARD.format(seed=seed, steps=steps, minutes=minutes, threads=threads, table=table)
