"""What is asked while things break: requests with fixed answers, each with a reason to be here.

Every state that a stream carries must survive a move: the noise of its seed, its penalties, the
automaton of its schema, text held back for a stop string, logprobs and the count of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
STOP_WORDS = 3  # of the answer make up a stop string


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    path: str
    body: dict[str, Any]


def jobs(model: str, num_tokens: int, prompt_words: int) -> list[Job]:
    """`num_tokens` per answer, where the job does not end sooner by itself. `prompt_words`: length
    of the long prompt."""
    usage = {"stream_options": {"include_usage": True}}
    common = {"model": model, "stream": True, "max_tokens": num_tokens, **usage}
    greedy = {**common, "temperature": 0, "ignore_eos": True}
    seeded = {**common, "temperature": 0.9, "seed": 11, "ignore_eos": True}
    question = [{"role": "user", "content": "Tell me a long story about the sea."}]
    long_prompt = " ".join(f"{number} and {number + 1}," for number in range(prompt_words // 3))
    names = {"type": "array", "minItems": 6, "maxItems": 8, "items": {"$ref": "#/$defs/name"}}
    schema = {
        "type": "object",
        "properties": {"names": names},
        "required": ["names"],
        "additionalProperties": False,
        "$defs": {"name": {"type": "string", "minLength": 4, "maxLength": 12}},
    }
    strict = {"type": "json_schema", "json_schema": {"name": "names", "schema": schema}}
    return [
        Job("greedy", COMPLETIONS, {**greedy, "prompt": "Once upon a time", "logprobs": 2}),
        Job(
            "seeded",
            CHAT,
            {**seeded, "messages": question, "logprobs": True, "top_logprobs": 2},
        ),
        Job("long prompt", COMPLETIONS, {**greedy, "prompt": long_prompt}),
        Job(
            "penalties",
            COMPLETIONS,
            {
                **seeded,
                "prompt": "One, two, three,",
                "presence_penalty": 0.6,
                "frequency_penalty": 0.4,
                "repetition_penalty": 1.1,
            },
        ),
        Job(
            "schema",
            CHAT,
            {**seeded, "max_tokens": 400, "messages": question, "response_format": strict},
        ),
        Job("two choices", CHAT, {**seeded, "messages": question, "n": 2}),
    ]


def stopping(job: Job, text: str) -> Job:
    """The same request, ended by a stop string found late in its known answer."""
    words = text.split(" ")
    at = len(words) * 4 // 5
    stop = " ".join(words[at : at + STOP_WORDS])
    return Job("stop string", job.path, {**job.body, "stop": [stop]}) if stop.strip() else job
