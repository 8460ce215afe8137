"""The form of every answer, for /openapi.json: all fields that are sent, their types, what is null.

Written by hand beside the code that makes the answers; tests hold all answers to it, and let no
answer have a field that is not here.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_INTEGER: Schema = {"type": "integer"}
_NUMBER: Schema = {"type": "number"}
_FLAG: Schema = {"type": "boolean"}
_NULL: Schema = {"type": "null"}
_FREE: Schema = {"type": "object", "additionalProperties": True}


def _object(fields: Schema, optional: Schema | None = None) -> Schema:
    """`fields` are always there, `optional` ones when they were asked for or there is something."""
    properties = {**fields, **(optional or {})}
    return {"type": "object", "required": list(fields), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _map(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, _NULL]}


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


_MAYBE_TEXT = _or_null(_TEXT)
_IDS = _list(_INTEGER)
_USAGE = _object(
    {
        "prompt_tokens": _INTEGER,
        "completion_tokens": _INTEGER,
        "total_tokens": _INTEGER,
        "prompt_tokens_details": _object({"cached_tokens": _INTEGER}),
        "completion_tokens_details": _object({"reasoning_tokens": _INTEGER}),
    }
)
_RANKED = _object({"logprob": _NUMBER, "rank": _INTEGER, "decoded_token": _TEXT})
_PROMPT_LOGPROBS = _list(_or_null(_map(_RANKED)))
_LIKELY = {"token": _TEXT, "logprob": _NUMBER, "bytes": _or_null(_IDS)}
_LOGPROB = _object({**_LIKELY, "top_logprobs": _list(_object(_LIKELY))})
_FINISH_REASON = _one_of("stop", "length", "tool_calls", "function_call", "repetition")
_STOP_REASON: Schema = {"type": ["string", "integer", "null"]}
_ENDING = {"finish_reason": _FINISH_REASON, "stop_reason": _STOP_REASON}
_OPENAI = {"id": _TEXT, "created": _INTEGER, "model": _TEXT, "usage": _USAGE}
_HAND_OVER = {"kv_transfer_params": _FREE}  # for routers of others that asked for it

# --- chat, completions, generate -----------------------------------------------------------------

_FUNCTION = _object({"name": _TEXT, "arguments": _TEXT})
_CALL = _object({"id": _TEXT, "type": _one_of("function"), "function": _FUNCTION})
_CHAT_MESSAGE = _object(
    {"role": _one_of("assistant"), "content": _MAYBE_TEXT, "refusal": _NULL},
    {
        "reasoning": _TEXT,
        "reasoning_content": _TEXT,
        "tool_calls": _list(_CALL),
        "function_call": _FUNCTION,
    },
)
_CHAT_LOGPROBS = _object({"content": _list(_LOGPROB), "refusal": _NULL})
_CHAT_CHOICE = _object(
    {"index": _INTEGER, "message": _CHAT_MESSAGE, "logprobs": _or_null(_CHAT_LOGPROBS), **_ENDING},
    {"token_ids": _IDS},
)
_PROMPT = {"prompt_token_ids": _IDS, "prompt_text": _TEXT, "prompt_logprobs": _PROMPT_LOGPROBS}
_CHAT = _object(
    {
        **_OPENAI,
        "object": _one_of("chat.completion"),
        "system_fingerprint": _TEXT,
        "choices": _list(_CHAT_CHOICE),
    },
    {**_PROMPT, **_HAND_OVER},
)
_COMPLETION_LOGPROBS = _object(
    {
        "tokens": _list(_TEXT),
        "token_logprobs": _list(_or_null(_NUMBER)),  # null: the first of an echoed text
        "top_logprobs": _or_null(_list(_or_null(_map(_NUMBER)))),
        "text_offset": _IDS,
    }
)
_COMPLETION_CHOICE = _object(
    {"index": _INTEGER, "text": _TEXT, "logprobs": _or_null(_COMPLETION_LOGPROBS), **_ENDING},
    {"token_ids": _IDS, **_PROMPT},
)
_COMPLETION = _object(
    {
        **_OPENAI,
        "object": _one_of("text_completion"),
        "system_fingerprint": _TEXT,
        "choices": _list(_COMPLETION_CHOICE),
    },
    _HAND_OVER,
)
_BY_ID = {"token_id": _INTEGER, "logprob": _NUMBER}
_GENERATED_LOGPROB = _object(
    {**_BY_ID, "rank": _INTEGER, "top_logprobs": _list(_object(_BY_ID))},
)
_GENERATED_CHOICE = _object(
    {
        "index": _INTEGER,
        "token_ids": _IDS,
        "logprobs": _or_null(_object({"content": _list(_GENERATED_LOGPROB)})),
        **_ENDING,
    },
    {"text": _TEXT},
)
_GENERATED = _object(
    {
        "request_id": _TEXT,
        "model": _TEXT,
        "created": _INTEGER,
        "output_mode": _one_of("tokens", "text"),
        "choices": _list(_GENERATED_CHOICE),
        "usage": _USAGE,
    },
    {"prompt_logprobs": _PROMPT_LOGPROBS, **_HAND_OVER},
)

# --- messages ------------------------------------------------------------------------------------

_BLOCK: Schema = {
    "anyOf": [
        _object({"type": _one_of("text"), "text": _TEXT}),
        _object({"type": _one_of("thinking"), "thinking": _TEXT, "signature": _TEXT}),
        _object({"type": _one_of("tool_use"), "id": _TEXT, "name": _TEXT, "input": _FREE}),
    ]
}
_MESSAGE = _object(
    {
        "id": _TEXT,
        "type": _one_of("message"),
        "role": _one_of("assistant"),
        "model": _TEXT,
        "content": _list(_BLOCK),
        "stop_reason": _one_of("end_turn", "max_tokens", "stop_sequence", "tool_use"),
        "stop_sequence": _MAYBE_TEXT,
        "usage": _object(
            {
                "input_tokens": _INTEGER,
                "cache_read_input_tokens": _INTEGER,
                "cache_creation_input_tokens": _INTEGER,
                "output_tokens": _INTEGER,
            }
        ),
    }
)

# --- responses -----------------------------------------------------------------------------------

_STATUS = _one_of("in_progress", "completed", "incomplete")
_INPUT_TEXT = _object({"type": _one_of("input_text"), "text": _TEXT})
_PART: Schema = {
    "anyOf": [
        _INPUT_TEXT,
        _object(
            {
                "type": _one_of("output_text"),
                "text": _TEXT,
                "annotations": _list(_FREE),
                "logprobs": _list(_LOGPROB),
            }
        ),
        _object({"type": _one_of("refusal"), "refusal": _TEXT}),
    ]
}
_ITEM: Schema = {
    "anyOf": [
        _object(
            {
                "type": _one_of("message"),
                "id": _TEXT,
                "role": _one_of("user", "assistant", "system", "developer"),
                "content": _list(_PART),
                "status": _STATUS,
            }
        ),
        _object(
            {
                "type": _one_of("function_call"),
                "id": _TEXT,
                "call_id": _TEXT,
                "name": _TEXT,
                "arguments": _TEXT,
                "status": _STATUS,
            }
        ),
        _object(
            {
                "type": _one_of("function_call_output"),
                "id": _TEXT,
                "call_id": _TEXT,
                "output": {"anyOf": [_TEXT, _list(_INPUT_TEXT)]},
                "status": _STATUS,
            }
        ),
        _object(
            {
                "type": _one_of("reasoning"),
                "id": _TEXT,
                "summary": _list(_object({"type": _one_of("summary_text"), "text": _TEXT})),
                "content": _list(_object({"type": _one_of("reasoning_text"), "text": _TEXT})),
                "status": _STATUS,
            }
        ),
    ]
}
_RESPONSE_USAGE = _object(
    {
        "input_tokens": _INTEGER,
        "input_tokens_details": _object(
            {"cached_tokens": _INTEGER, "cache_write_tokens": _INTEGER}
        ),
        "output_tokens": _INTEGER,
        "output_tokens_details": _object({"reasoning_tokens": _INTEGER}),
        "total_tokens": _INTEGER,
    }
)
_FUNCTION_TOOL = _object(
    {
        "type": _one_of("function"),
        "name": _TEXT,
        "description": _MAYBE_TEXT,
        "parameters": _or_null(_FREE),
        "strict": _or_null(_FLAG),
    }
)
_RESPONSE = _object(
    {
        "id": _TEXT,
        "object": _one_of("response"),
        "created_at": _INTEGER,
        "completed_at": _or_null(_INTEGER),
        "status": _one_of(
            "queued", "in_progress", "completed", "incomplete", "failed", "cancelled"
        ),
        "background": _FLAG,
        "error": _or_null(_object({"code": _TEXT, "message": _TEXT})),
        "incomplete_details": _or_null(_object({"reason": _one_of("max_output_tokens")})),
        "instructions": _MAYBE_TEXT,
        "max_output_tokens": _or_null(_INTEGER),
        "max_tool_calls": _or_null(_INTEGER),
        "model": _TEXT,
        "output": _list(_ITEM),
        "parallel_tool_calls": _FLAG,
        "previous_response_id": _MAYBE_TEXT,
        "prompt_cache_key": _MAYBE_TEXT,
        "reasoning": _object({"effort": _MAYBE_TEXT, "summary": _MAYBE_TEXT}),
        "safety_identifier": _MAYBE_TEXT,
        "service_tier": _TEXT,
        "store": _FLAG,
        "temperature": _NUMBER,
        "text": _object({"format": _FREE, "verbosity": _TEXT}),
        "tool_choice": {"anyOf": [_TEXT, _FREE]},
        "tools": _list(_FUNCTION_TOOL),
        "top_logprobs": _INTEGER,
        "top_p": _NUMBER,
        "truncation": _one_of("auto", "disabled"),
        "usage": _or_null(_RESPONSE_USAGE),
        "user": _MAYBE_TEXT,
        "metadata": _map(_TEXT),
    }
)
_DELETED = _object({"id": _TEXT, "object": _one_of("response"), "deleted": _FLAG})
_ITEM_PAGE = _object(
    {
        "object": _one_of("list"),
        "data": _list(_ITEM),
        "first_id": _MAYBE_TEXT,
        "last_id": _MAYBE_TEXT,
        "has_more": _FLAG,
    }
)

# --- models, tokens, operations ------------------------------------------------------------------

_MODEL = _object(
    {
        "id": _TEXT,
        "object": _one_of("model"),
        "created": _INTEGER,
        "owned_by": _TEXT,
        "root": _TEXT,
        "parent": _MAYBE_TEXT,
        "max_model_len": _INTEGER,
        "permission": _list(_FREE),
    }
)
_TOKENS = _object(
    {"count": _INTEGER, "max_model_len": _INTEGER, "tokens": _IDS}, {"token_strs": _list(_TEXT)}
)
_TOKENIZER: Schema = {
    **_object({"tokenizer_class": _TEXT, "vocab_size": _INTEGER, "chat_template": _MAYBE_TEXT}),
    "additionalProperties": True,  # the special tokens by name
}
_VECTOR: Schema = {"anyOf": [_list(_NUMBER), _TEXT]}  # text: base64 of float32, little-endian
_TEXT_USAGE = _object({"prompt_tokens": _INTEGER, "total_tokens": _INTEGER})
_EMBEDDINGS = _object(
    {
        "object": _one_of("list"),
        "data": _list(
            _object({"object": _one_of("embedding"), "index": _INTEGER, "embedding": _VECTOR})
        ),
        "model": _TEXT,
        "usage": _TEXT_USAGE,
    }
)


def _rows(fields: Schema) -> Schema:
    return _object(
        {
            "id": _TEXT,
            "object": _one_of("list"),
            "created": _INTEGER,
            "model": _TEXT,
            "data": _list(_object({"index": _INTEGER, **fields})),
            "usage": _TEXT_USAGE,
        }
    )


_SCORES = _rows({"object": _one_of("score"), "score": _NUMBER})
_RANKING = _object(
    {
        "id": _TEXT,
        "model": _TEXT,
        "usage": _TEXT_USAGE,
        "results": _list(
            _object(
                {"index": _INTEGER, "relevance_score": _NUMBER},
                {"document": _object({"text": _TEXT})},
            )
        ),
    }
)
_HEALTH = _object({"status": _one_of("ok")})

ANSWERS: dict[str, Schema] = {
    "POST /v1/chat/completions": _CHAT,
    "POST /v1/completions": _COMPLETION,
    "POST /invocations": {"anyOf": [_CHAT, _COMPLETION]},
    "POST /inference/v1/generate": _GENERATED,
    "POST /v1/messages": _MESSAGE,
    "POST /v1/messages/count_tokens": _object({"input_tokens": _INTEGER}),
    "POST /v1/responses": _RESPONSE,
    "GET /v1/responses/{response_id}": _RESPONSE,
    "DELETE /v1/responses/{response_id}": _DELETED,
    "POST /v1/responses/{response_id}/cancel": _RESPONSE,
    "GET /v1/responses/{response_id}/input_items": _ITEM_PAGE,
    "POST /v1/responses/input_tokens": _object(
        {"object": _one_of("response.input_tokens"), "input_tokens": _INTEGER}
    ),
    "GET /v1/models": _object({"object": _one_of("list"), "data": _list(_MODEL)}),
    "GET /v1/models/{model}": _MODEL,
    "POST /v1/embeddings": _EMBEDDINGS,
    "POST /pooling": _rows({"object": _one_of("pooling"), "data": _VECTOR}),
    "POST /classify": _rows({"label": _TEXT, "probs": _list(_NUMBER), "num_classes": _INTEGER}),
    **dict.fromkeys(("POST /score", "POST /v1/score"), _SCORES),
    **dict.fromkeys(("POST /rerank", "POST /v1/rerank", "POST /v2/rerank"), _RANKING),
    "POST /tokenize": _TOKENS,
    "POST /detokenize": _object({"prompt": _TEXT}),
    "GET /tokenizer_info": _TOKENIZER,
    "GET /health": _HEALTH,
    "GET /ping": _HEALTH,
    "POST /ping": _HEALTH,
    "GET /version": _object({"version": _TEXT}),
    "GET /load": _object({"server_load": _INTEGER}),
}
