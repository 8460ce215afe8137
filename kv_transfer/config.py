"""The settings of the KV hand-over, read from the JSON that vLLM users know. Starts nothing.

--kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_consumer",
                       "kv_connector_extra_config": {"kv_lease_duration": 10}}'

--kv-transfer-config '{"kv_connector": "MultiConnector", "kv_connector_extra_config":
                       {"connectors": [{"kv_connector": "shm"}, {"kv_connector": "nixl"}]}}'
"""

from __future__ import annotations

import contextlib
import json
from argparse import ArgumentTypeError
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast, get_args

from common.errors import ConfigError
from common.options import parse_bytes

KVRole = Literal["kv_producer", "kv_consumer", "kv_both"]
BufferDevice = Literal["auto", "cpu", "cuda"]

BUILT_IN = ("memory", "shm", "nixl", "nccl", "shared_storage", "multi")
ALIASES = {  # vLLM's names for what we have
    "NixlConnector": "nixl",
    "NixlPullConnector": "nixl",
    "P2pNcclConnector": "nccl",
    "MultiConnector": "multi",
    "ExampleConnector": "shared_storage",
    "SharedStorageConnector": "shared_storage",
}
_KEYS = ("kv_connector", "kv_role", "kv_buffer_device", "kv_connector_extra_config")
_EXTRA_KEYS = {
    "memory": ("kv_lease_duration", "checksum"),
    "shm": ("kv_lease_duration", "checksum"),
    "nixl": ("kv_lease_duration", "checksum", "backends"),
    "nccl": ("kv_lease_duration", "checksum"),
    "shared_storage": (
        "kv_lease_duration",
        "shared_storage_path",
        "shared_storage_max_bytes",
        "prefix_cache",
    ),
    "multi": ("kv_lease_duration", "connectors"),
}


@dataclass(frozen=True, slots=True)
class KVTransferConfig:
    connector: str = "shm"  # a built-in name, or the name of an entry point
    role: KVRole = "kv_both"
    lease_s: float = 10.0
    checksum: bool | None = None  # compare one of each block; None: as the connector sees fit
    device: BufferDevice = "auto"  # where the KV pool must lie; auto: wherever it does
    backends: tuple[str, ...] = ("UCX",)  # nixl
    storage_dir: str = ""  # shared_storage
    storage_max_bytes: int | None = None  # of all files there; None: no limit
    prefix_cache: bool = True  # shared_storage: load stored prefixes instead of computing them
    connectors: tuple[KVTransferConfig, ...] = ()  # multi: to be tried in this order
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))  # third party

    def __post_init__(self) -> None:
        if not self.connector:
            raise ConfigError("kv_connector must be a name")
        if self.role not in get_args(KVRole):
            known = ", ".join(get_args(KVRole))
            raise ConfigError(f"kv_role must be one of {known}, not {self.role!r}")
        if not 0.1 <= self.lease_s <= 3600:
            raise ConfigError(f"kv_lease_duration must be 0.1 to 3600 s, not {self.lease_s}")
        if self.device not in get_args(BufferDevice):
            known = ", ".join(get_args(BufferDevice))
            raise ConfigError(f"kv_buffer_device must be one of {known}, not {self.device!r}")
        if self.storage_max_bytes is not None and self.storage_max_bytes <= 0:
            raise ConfigError("shared_storage_max_bytes must be positive")
        if self.connector == "multi":
            self._check_connectors()
        if self.connector == "nixl" and not self.backends:
            raise ConfigError("backends must name at least one NIXL backend")
        if self.connector == "shared_storage" and not self.storage_dir:
            raise ConfigError(
                "connector shared_storage needs a directory: "
                '"kv_connector_extra_config": {"shared_storage_path": …}'
            )

    def _check_connectors(self) -> None:
        names = [child.connector for child in self.connectors]
        if not names:
            raise ConfigError(
                'connector multi needs "connectors": [{"kv_connector": …}, …] among '
                "kv_connector_extra_config"
            )
        if len(set(names)) != len(names) or "multi" in names:
            raise ConfigError("connectors must name different ones, and none of them multi")

    def of(self, connector: str) -> KVTransferConfig | None:
        """The settings of this connector, be it the only one or one of several."""
        everything = (self, *self.connectors)
        return next((config for config in everything if config.connector == connector), None)

    @classmethod
    def parse(cls, text: str) -> KVTransferConfig:
        """From vLLM-style JSON. Raises ConfigError for anything it does not know."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("kv-transfer-config is not valid JSON") from None
        return _from_object(raw, "kv-transfer-config")


def _from_object(raw: object, where: str) -> KVTransferConfig:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a JSON object")
    _refuse_unknown(raw, _KEYS, where)
    name = raw.get("kv_connector")
    if not isinstance(name, str):
        raise ConfigError("kv_connector must be a name")
    extra = raw.get("kv_connector_extra_config", {})
    if not isinstance(extra, dict):
        raise ConfigError("kv_connector_extra_config must be a JSON object")
    # __post_init__ checks the role and the device.
    role = cast(KVRole, raw.get("kv_role", "kv_both"))
    device = cast(BufferDevice, raw.get("kv_buffer_device", "auto"))
    return _with_extra(ALIASES.get(name, name), role, device, extra)


def _with_extra(
    connector: str, role: KVRole, device: BufferDevice, extra: dict[str, object]
) -> KVTransferConfig:
    if connector not in BUILT_IN:
        return KVTransferConfig(connector, role, device=device, extra=MappingProxyType(extra))
    _refuse_unknown(extra, _EXTRA_KEYS[connector], "kv_connector_extra_config")
    lease_s = extra.get("kv_lease_duration", 10.0)
    if isinstance(lease_s, bool) or not isinstance(lease_s, int | float):
        raise ConfigError("kv_lease_duration must be a number of seconds")
    backends = extra.get("backends", ["UCX"])
    if not isinstance(backends, list) or not all(isinstance(name, str) for name in backends):
        raise ConfigError("backends must be a list of names")
    storage_dir = extra.get("shared_storage_path", "")
    if not isinstance(storage_dir, str):
        raise ConfigError("shared_storage_path must be a directory")
    checksum = extra.get("checksum")
    if checksum is not None and not isinstance(checksum, bool):
        raise ConfigError("checksum must be true or false")
    prefix_cache = extra.get("prefix_cache", True)
    if not isinstance(prefix_cache, bool):
        raise ConfigError("prefix_cache must be true or false")
    return KVTransferConfig(
        connector,
        role,
        lease_s=float(lease_s),
        checksum=checksum,
        device=device,
        backends=tuple(backends),
        storage_dir=storage_dir,
        storage_max_bytes=_max_bytes(extra.get("shared_storage_max_bytes")),
        prefix_cache=prefix_cache,
        connectors=_children(extra.get("connectors", [])),
    )


def _max_bytes(raw: object) -> int | None:
    if raw is None or (isinstance(raw, int) and not isinstance(raw, bool)):
        return raw
    if isinstance(raw, str):
        with contextlib.suppress(ArgumentTypeError):
            return parse_bytes(raw)
    raise ConfigError("shared_storage_max_bytes must be a number of bytes, or text like 64GiB")


def _children(raw: object) -> tuple[KVTransferConfig, ...]:
    if not isinstance(raw, list):
        raise ConfigError("connectors must be a list")
    for child in raw:
        extra = child.get("kv_connector_extra_config") if isinstance(child, dict) else None
        if isinstance(extra, dict) and "kv_lease_duration" in extra:
            raise ConfigError("kv_lease_duration belongs to multi, not to one of its connectors")
    return tuple(_from_object(child, "each of connectors") for child in raw)


def _refuse_unknown(given: dict[str, object], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
