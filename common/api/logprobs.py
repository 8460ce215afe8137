"""Log-probabilities as chat, completions and generate show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from common.request import TokenLogprob
from common.vocabulary import Vocabulary

_LOWEST = -9999.0  # JSON has no -inf


def chat_logprobs(
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprob],
    *,
    num_top: int,
    as_ids: bool = False,
) -> list[dict[str, Any]]:
    """One `logprobs.content` entry per token."""
    entries = []
    for token_id, found in zip(token_ids, logprobs, strict=True):
        entry = _chat_entry(vocabulary, token_id, found.logprob, as_ids)
        entry["top_logprobs"] = [
            _chat_entry(vocabulary, other, logprob, as_ids)
            for other, logprob in found.top[:num_top]
        ]
        entries.append(entry)
    return entries


def _chat_entry(
    vocabulary: Vocabulary, token_id: int, logprob: float, as_ids: bool
) -> dict[str, Any]:
    data = vocabulary.bytes_of(token_id)
    return {
        "token": f"token_id:{token_id}" if as_ids else data.decode("utf-8", "replace"),
        "logprob": _finite(logprob),
        "bytes": list(data),
    }


def completion_logprobs(
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    text_offsets: Sequence[int],
    *,
    num_top: int,
    as_ids: bool = False,
) -> dict[str, Any]:
    """The four parallel lists of completions. A token of broken UTF-8 is spelled
    `bytes:\\xe2\\x80`, so that different tokens never share a key."""
    tokens = [_key(vocabulary, token_id, as_ids) for token_id in token_ids]
    top: list[dict[str, float] | None] = []
    for token, found in zip(tokens, logprobs, strict=True):
        if found is None or not num_top:
            top.append(None)
            continue
        best = {_key(vocabulary, i, as_ids): _finite(p) for i, p in found.top[:num_top]}
        best.setdefault(token, _finite(found.logprob))
        top.append(best)
    return {
        "tokens": tokens,
        "token_logprobs": [found and _finite(found.logprob) for found in logprobs],
        "top_logprobs": top if num_top else None,
        "text_offset": list(text_offsets),
    }


def _key(vocabulary: Vocabulary, token_id: int, as_ids: bool) -> str:
    if as_ids:
        return f"token_id:{token_id}"
    data = vocabulary.bytes_of(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def generate_logprobs(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprob]
) -> list[dict[str, Any]]:
    return [
        {
            "token_id": token_id,
            "logprob": _finite(found.logprob),
            "rank": found.rank,
            "top_logprobs": [
                {"token_id": other, "logprob": _finite(logprob)} for other, logprob in found.top
            ],
        }
        for token_id, found in zip(token_ids, logprobs, strict=True)
    ]


def prompt_logprobs(
    vocabulary: Vocabulary,
    token_ids: Sequence[int],
    logprobs: Iterable[TokenLogprob | None],
    num_top: int,
) -> list[dict[str, Any] | None]:
    """vLLM's form: per prompt token null or {token id: {logprob, rank, decoded_token}}."""
    entries: list[dict[str, Any] | None] = []
    for token_id, found in zip(token_ids, logprobs, strict=False):
        if found is None:
            entries.append(None)
            continue
        ranked = [(token_id, found.logprob, found.rank)]
        ranked += [(i, p, rank) for rank, (i, p) in enumerate(found.top[:num_top], 1)]
        entries.append(
            {
                str(i): {
                    "logprob": _finite(p),
                    "rank": rank,
                    "decoded_token": vocabulary.text_of(i),
                }
                for i, p, rank in ranked
            }
        )
    return entries


def _finite(logprob: float) -> float:
    return max(logprob, _LOWEST)
