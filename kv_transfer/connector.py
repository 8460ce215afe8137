"""The door of the KV hand-over: the two faces, their settings, and transports by name.

    config = KVTransferConfig.parse('{"kv_connector": "NixlConnector"}')
    transport = make_transport(config, region, info)
    producer = KVProducer(info, region, transport, free=…, epochs=…, lease_s=config.lease_s)
    consumer = KVConsumer(info, region, transport)

A third party adds a connector as an entry point of group `xpyd.kv_transports`: a callable that
takes (config, region, info) and returns a `Transport`.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from common.errors import ConfigError
from kv_transfer.config import BUILT_IN, KVTransferConfig
from kv_transfer.consumer import KVConsumer
from kv_transfer.held_offer import HeldOffer
from kv_transfer.identity import KVIdentity
from kv_transfer.producer import KVProducer
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Transport

__all__ = [
    "HeldOffer",
    "KVConsumer",
    "KVIdentity",
    "KVProducer",
    "KVRegion",
    "KVTransferConfig",
    "make_transport",
]

ENTRY_POINT_GROUP = "xpyd.kv_transports"
HOST_ONLY = ("memory", "shm", "shared_storage")


def make_transport(config: KVTransferConfig, region: KVRegion, info: KVIdentity) -> Transport:
    """The transport that the settings name. Raises ConfigError if none can work here."""
    _check_memory(config, region)
    transport = _make_transport(config, region, info)
    if config.checksum is not None:
        transport.checksums = transport.always_compares = config.checksum
    return transport


def _check_memory(config: KVTransferConfig, region: KVRegion) -> None:
    """Raises ConfigError if the KV pool does not lie where the connector can use it."""
    lies_on = "cpu" if region.device is None else "cuda"
    if config.device not in ("auto", lies_on):
        raise ConfigError(
            f"kv_buffer_device is {config.device}, but the KV pool is on {lies_on}: there is no "
            "staging between the two (--device decides where the pool is)"
        )
    if region.device is not None and config.connector in HOST_ONLY:
        raise ConfigError(
            f"connector {config.connector} needs a KV pool in host memory: on a GPU use nixl or "
            "nccl"
        )
    if region.device is not None and config.checksum:
        raise ConfigError("checksums are made by the CPU: not for a KV pool on a GPU")


def _make_transport(config: KVTransferConfig, region: KVRegion, info: KVIdentity) -> Transport:
    """Built-in ones are imported only when named: nixl needs a package not everybody has."""
    match config.connector:
        case "memory":
            from kv_transfer.transport.memory import MemoryTransport

            return MemoryTransport(region)
        case "shm":
            from kv_transfer.transport.shm import ShmTransport

            return ShmTransport(region)
        case "nixl":
            from kv_transfer.transport.nixl import NixlTransport

            return NixlTransport(region, info.incarnation, config.backends)
        case "nccl":
            from kv_transfer.transport.nccl import NcclTransport

            return NcclTransport(region, info.incarnation, info.host)
        case "multi":
            from kv_transfer.transport.multi import MultiTransport

            return MultiTransport(
                [make_transport(child, region, info) for child in config.connectors]
            )
        case "shared_storage":
            from kv_transfer.transport.shared_storage import SharedStorageTransport

            return SharedStorageTransport(
                region, config.storage_dir, info.kv_fingerprint, config.storage_max_bytes
            )
    for point in entry_points(group=ENTRY_POINT_GROUP, name=config.connector):
        transport = point.load()(config, region, info)
        if not isinstance(transport, Transport):
            raise ConfigError(f"connector {config.connector}: the entry point makes no Transport")
        return transport
    raise ConfigError(f"unknown connector {config.connector!r}; built in: {', '.join(BUILT_IN)}")
