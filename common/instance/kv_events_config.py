"""`--kv-events-config`: where KV events go, as JSON with vLLM's names. Opens nothing."""

from __future__ import annotations

from typing import Literal

import msgspec

from common.addresses import host_of, is_loopback
from common.errors import ConfigError

FLAG = "--kv-events-config"


class KVEventsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    enable_kv_cache_events: bool = False
    publisher: Literal["zmq", "null"] = "zmq"
    endpoint: str = "tcp://127.0.0.1:5557"  # of the PUB socket
    replay_endpoint: str | None = None  # of the ROUTER socket; none: no replay
    topic: str = ""
    buffer_steps: int = 10_000  # batches kept for replay
    hwm: int = 100_000  # batches queued per subscriber before it loses some
    max_queue_size: int = 100_000  # vLLM's; nothing is queued before the socket here
    allow_remote: bool = False  # ours: prompts may leave this machine, unencrypted


def kv_events_config(text: str) -> KVEventsConfig | None:
    """None if events are off. Raises ConfigError with one line."""
    if not text:
        return None
    try:
        config = msgspec.json.decode(text, type=KVEventsConfig)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ConfigError(f"{FLAG}: {error}") from None
    if not config.enable_kv_cache_events or config.publisher == "null":
        return None
    for name in ("buffer_steps", "hwm"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{FLAG}: {name} must be above 0")
    for endpoint in filter(None, (config.endpoint, config.replay_endpoint)):
        _check_endpoint(endpoint, config.allow_remote)
    return config


def binds(endpoint: str) -> bool:
    """Wildcards, this machine's own addresses, ipc: bound. What is elsewhere: connected to."""
    host = host_of(endpoint)
    return endpoint.startswith("ipc://") or host in ("*", "0.0.0.0", "::") or is_loopback(host)


def _check_endpoint(endpoint: str, allow_remote: bool) -> None:
    if endpoint.startswith("ipc://"):
        return
    if not endpoint.startswith("tcp://") or not endpoint.rpartition(":")[2].isdigit():
        raise ConfigError(f"{FLAG}: expected tcp://HOST:PORT or ipc://PATH, got {endpoint!r}")
    if not is_loopback(host_of(endpoint)) and not allow_remote:
        raise ConfigError(
            f"{FLAG}: {endpoint} would show everybody's prompts to the network, unencrypted: use "
            'tcp://127.0.0.1:PORT, or add "allow_remote": true'
        )
