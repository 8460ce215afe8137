"""POST /tokenize and /detokenize, GET /tokenizer_info."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from common.api.body import read_object
from common.api.context import info_of
from common.api.errors import parse
from common.api.generation import Service
from common.api.prompts import chat_prompt, encode_prompt
from common.api.protocol import DetokenizeRequest, TokenizeChat, TokenizePrompt
from common.api.sampling import check_token_ids
from common.api.sse import encode_json


async def tokenize(service: Service, request: Request) -> Response:
    body = await read_object(request, service.settings)
    ask: TokenizeChat | TokenizePrompt
    ask = parse(TokenizeChat, body) if "messages" in body else parse(TokenizePrompt, body)
    card, text = service.resolve(ask.model)
    info = info_of(request)
    if isinstance(ask, TokenizeChat):
        prompt = await chat_prompt(
            ask, text, service.settings, info, add_special_tokens=ask.add_special_tokens
        )
    else:
        prompt = await encode_prompt(
            ask.prompt, text, info, add_special_tokens=ask.add_special_tokens
        )
    answer: dict[str, Any] = {
        "count": len(prompt.token_ids),
        "max_model_len": card.max_model_len,
        "tokens": prompt.token_ids,
    }
    if ask.return_token_strs:
        answer["token_strs"] = [text.vocabulary.token(i) for i in prompt.token_ids]
    return Response(encode_json(answer), media_type="application/json")


async def tokenizer_info(service: Service, request: Request) -> Response:
    _, text = service.resolve(None)
    info: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": text.vocab_size,
        "chat_template": text.chat_template().source if text.has_chat_template else None,
        **text.special_tokens,
    }
    return Response(encode_json(info), media_type="application/json")


async def detokenize(service: Service, request: Request) -> Response:
    ask = parse(DetokenizeRequest, await read_object(request, service.settings))
    _, text = service.resolve(ask.model)
    check_token_ids(ask.tokens, "tokens", text)
    return Response(encode_json({"prompt": text.decode(ask.tokens)}), media_type="application/json")
