"""Who may pass: API keys, compared in constant time, before any byte of the body is read.

The list of open paths is exact and compared with the same decoded path that the router uses, so a
spelling that slips past one slips past the other (`//v1`, `%2fhealth` are simply not in it).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable

from common.api.key_ring import digest_of
from common.api.settings import ApiSettings
from common.errors import InvalidApiKey

_OPEN_PATHS = frozenset({"/health", "/ping", "/version"})


class KeyCheck:
    def __init__(self, settings: ApiSettings) -> None:
        self._ring = settings.ring
        self._peer_paths = settings.peer_paths
        self._peer_digest = digest_of(settings.peer_token.encode())
        self._open_paths = _OPEN_PATHS | settings.own_guard_paths
        if settings.open_metrics:
            self._open_paths |= {"/metrics"}

    def check(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Which tenant asks ("" without keys). Raises InvalidApiKey."""
        if not self._ring or path in self._open_paths:
            return ""
        given = _given_keys(headers)
        for key in given:
            if tenant := self._ring.find(key):
                return tenant
            if path in self._peer_paths and hmac.compare_digest(digest_of(key), self._peer_digest):
                return ""
        if not given:
            raise InvalidApiKey("an API key is needed: send 'Authorization: Bearer KEY'")
        raise InvalidApiKey("Incorrect API key provided")


def _given_keys(headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
    """From `Authorization: Bearer` (OpenAI's way) and `x-api-key` (Anthropic's)."""
    keys = []
    for name, value in headers:
        if name == b"x-api-key":
            keys.append(value.strip())
        elif name == b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                keys.append(key.strip())
    return [key for key in keys if key]
