"""A hand-over as text that a stranger may carry: sealed by the producer, opened by the consumer.

Whoever lacks the fleet's key can neither make such a text nor change one, so what it names (an
address to connect to, a prompt's KV) is what one of our own processes named. Knows no HTTP.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

import msgspec

from common.request import EngineRequest
from common.wire import KVHandle

MAX_SEALED_CHARS = 8192
_MAC_BYTES = 32


class SealedHandOver(msgspec.Struct, frozen=True, array_like=True):
    handle: KVHandle
    prompt: bytes  # digest of what the KV was computed from


def seal(key: bytes, handle: KVHandle, request: EngineRequest) -> str:
    """URL-safe text; `request` is the one that the producer runs."""
    payload = msgspec.msgpack.encode(SealedHandOver(handle, prompt_digest(request)))
    return base64.urlsafe_b64encode(_mac(key, payload) + payload).decode()


def unseal(key: bytes, text: str) -> SealedHandOver | None:
    """None unless a holder of `key` made exactly this text."""
    if len(text) > MAX_SEALED_CHARS:
        return None
    try:
        data = base64.b64decode(text.encode(), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    mac, payload = data[:_MAC_BYTES], data[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, payload)):
        return None
    try:
        return msgspec.msgpack.decode(payload, type=SealedHandOver)
    except msgspec.MsgspecError:  # ours, of another version
        return None


def prompt_digest(request: EngineRequest) -> bytes:
    """Of all that the KV of a prompt depends on, beside the model."""
    token_ids = request.prompt_token_ids + request.output_token_ids
    return hashlib.sha256(msgspec.msgpack.encode((token_ids, request.kv_salt))).digest()


def _mac(key: bytes, payload: bytes) -> bytes:
    return hmac.new(key, payload, hashlib.sha256).digest()
