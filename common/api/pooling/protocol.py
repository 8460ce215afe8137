"""What clients may send to a server that gives vectors: embeddings, scores, classes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from common.api.protocol import Body, CacheSalt, Timeout

_INPUT = "string, list of strings, token ids, or list of token id lists"

Texts = str | Annotated[list[str], Field(min_length=1, max_length=1024)]


def _text_of(value: Any) -> Any:
    """Cohere's and Jina's clients send documents as objects, too."""
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"]
    return value


class PoolingFields(Body):
    """What all of them have in common."""

    model: str | None = Field(None, max_length=512)
    truncate_prompt_tokens: int | None = Field(None, ge=-1, lt=1 << 31)
    truncation_side: Literal["left", "right"] = "left"
    add_special_tokens: bool = True
    priority: int | None = Field(None, ge=-(1 << 31), lt=1 << 31, description="lower runs first")
    timeout_s: Timeout = None
    cache_salt: CacheSalt = ""
    request_id: str = Field("", max_length=256, description="a label for logs")
    user: str = Field("", description="accepted, without effect")


class EmbeddingRequest(PoolingFields):
    input: Any = Field(description=_INPUT)
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, lt=1 << 31)


class PoolingRequest(PoolingFields):
    input: Any = Field(description=_INPUT)
    encoding_format: Literal["float", "base64"] = "float"
    task: Literal["embed", "classify"] | None = None


class ClassifyRequest(PoolingFields):
    input: Any = Field(description=_INPUT)


class ScoreRequest(PoolingFields):
    queries: Texts | None = None
    documents: Texts | None = None
    text_1: Texts | None = None
    text_2: Texts | None = None


class RerankRequest(PoolingFields):
    query: str
    documents: list[Annotated[str, BeforeValidator(_text_of)]] = Field(
        min_length=1, max_length=1024, description="strings, or objects with a text"
    )
    top_n: int | None = Field(None, ge=0, description="0: all")
    return_documents: bool = True
