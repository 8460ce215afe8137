"""The settings of the KV hand-over, read from the JSON that vLLM users know. Starts nothing.

--kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_consumer",
                       "kv_connector_extra_config": {"kv_lease_duration": 10}}'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast, get_args

from common.errors import ConfigError

KVRole = Literal["kv_producer", "kv_consumer", "kv_both"]

BUILT_IN = ("memory", "shm", "nixl", "shared_storage")
ALIASES = {  # vLLM's names for what we have
    "NixlConnector": "nixl",
    "NixlPullConnector": "nixl",
    "ExampleConnector": "shared_storage",
    "SharedStorageConnector": "shared_storage",
}
_KEYS = ("kv_connector", "kv_role", "kv_buffer_device", "kv_connector_extra_config")
_EXTRA_KEYS = {
    "memory": ("kv_lease_duration", "checksum"),
    "shm": ("kv_lease_duration", "checksum"),
    "nixl": ("kv_lease_duration", "checksum", "backends"),
    "shared_storage": ("kv_lease_duration", "shared_storage_path"),
}


@dataclass(frozen=True, slots=True)
class KVTransferConfig:
    connector: str = "shm"  # a built-in name, or the name of an entry point
    role: KVRole = "kv_both"
    lease_s: float = 10.0
    checksum: bool | None = None  # compare a CRC-32 of each block; None: as the connector sees fit
    backends: tuple[str, ...] = ("UCX",)  # nixl
    storage_dir: str = ""  # shared_storage
    extra: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))  # third party

    def __post_init__(self) -> None:
        if not self.connector:
            raise ConfigError("kv_connector must be a name")
        if self.role not in get_args(KVRole):
            known = ", ".join(get_args(KVRole))
            raise ConfigError(f"kv_role must be one of {known}, not {self.role!r}")
        if not 0.1 <= self.lease_s <= 3600:
            raise ConfigError(f"kv_lease_duration must be 0.1 to 3600 s, not {self.lease_s}")
        if self.connector == "nixl" and not self.backends:
            raise ConfigError("backends must name at least one NIXL backend")
        if self.connector == "shared_storage" and not self.storage_dir:
            raise ConfigError(
                "connector shared_storage needs a directory: "
                '"kv_connector_extra_config": {"shared_storage_path": …}'
            )

    @classmethod
    def parse(cls, text: str) -> KVTransferConfig:
        """From vLLM-style JSON. Raises ConfigError for anything it does not know."""
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError):
            raise ConfigError("kv-transfer-config is not valid JSON") from None
        if not isinstance(raw, dict):
            raise ConfigError("kv-transfer-config must be a JSON object")
        _refuse_unknown(raw, _KEYS, "kv-transfer-config")
        name = raw.get("kv_connector")
        if not isinstance(name, str):
            raise ConfigError("kv_connector must be a name")
        device = raw.get("kv_buffer_device", "cpu")
        if device != "cpu":
            raise ConfigError(f"kv_buffer_device must be cpu, not {device!r}")
        extra = raw.get("kv_connector_extra_config", {})
        if not isinstance(extra, dict):
            raise ConfigError("kv_connector_extra_config must be a JSON object")
        # __post_init__ checks the role.
        role = cast(KVRole, raw.get("kv_role", "kv_both"))
        return _with_extra(ALIASES.get(name, name), role, extra)


def _with_extra(connector: str, role: KVRole, extra: dict[str, object]) -> KVTransferConfig:
    if connector not in BUILT_IN:
        return KVTransferConfig(connector, role, extra=MappingProxyType(extra))
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
    return KVTransferConfig(
        connector,
        role,
        lease_s=float(lease_s),
        checksum=checksum,
        backends=tuple(backends),
        storage_dir=storage_dir,
    )


def _refuse_unknown(given: dict[str, object], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown {', '.join(unknown)}; known: {', '.join(known)}")
