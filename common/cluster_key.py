"""The one secret that all processes of a fleet share, and what is derived from it. Opens no socket.

Everything comes from the key text by HMAC-SHA-256 with a label of its own, so nothing that is
derived tells the key or another derivation:

    listener   CURVE pair of every listener: who connects knows its public half, or gets nowhere
    link       CURVE pair of every connecting end: the only client key a listener lets in
    seal       signs what others carry from one instance to another (`handle_seal.py`)
    handle     signs the handles of KV hand-overs
    http_token what the proxy shows to `GET /instance` of an instance that has API keys
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from dataclasses import dataclass, field
from pathlib import Path

import zmq
from zmq.utils import z85

from common.errors import ConfigError

log = logging.getLogger(__name__)

MIN_KEY_CHARS = 16
ENVIRONMENT_NAME = "XPYD_CLUSTER_KEY"


@dataclass(frozen=True, slots=True)
class CurvePair:
    """As ZeroMQ wants it: Z85 text of 40 characters each."""

    public: bytes
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClusterKey:
    listener: CurvePair = field(repr=False)
    link: CurvePair = field(repr=False)
    http_token: str = field(repr=False)
    seal: bytes = field(repr=False)
    handle: bytes = field(repr=False)


def generate() -> str:
    """A fresh key text, 256 random bits."""
    return secrets.token_urlsafe(32)


def derive(text: str) -> ClusterKey:
    """Raises ConfigError if the text is too short to be a secret."""
    key = text.strip().encode()
    if len(key) < MIN_KEY_CHARS:
        raise ConfigError(f"the cluster key must have at least {MIN_KEY_CHARS} characters")
    return ClusterKey(
        listener=_pair(_labelled(key, "listener")),
        link=_pair(_labelled(key, "link")),
        http_token=_labelled(key, "http").hex(),
        seal=_labelled(key, "seal"),
        handle=_labelled(key, "handle"),
    )


def load(file: str, text: str) -> ClusterKey | None:
    """From a file if one is named, else from `text`; None without either. Raises ConfigError."""
    found = read_text(file) if file else text
    return derive(found) if found else None


def read_text(file: str) -> str:
    """The key in a file, without surrounding blanks. Raises ConfigError naming the flag."""
    path = Path(file).expanduser()
    try:
        found = path.read_text().strip()
        if path.stat().st_mode & 0o007:
            log.warning("--cluster-key-file: everybody on this machine may open this file")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"--cluster-key-file {file}: {reason}") from None
    if not found:
        raise ConfigError(f"--cluster-key-file {file}: the file is empty")
    return found


def _labelled(key: bytes, label: str) -> bytes:
    return hmac.new(key, f"xpyd {label} v1".encode(), hashlib.sha256).digest()


def _pair(scalar: bytes) -> CurvePair:
    """Any 32 bytes are a Curve25519 secret."""
    secret = z85.encode(scalar)
    return CurvePair(zmq.curve_public(secret), secret)
