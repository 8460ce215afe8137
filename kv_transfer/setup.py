"""From an instance's settings and its KV cache to the parts of a hand-over. Knows no role."""

from __future__ import annotations

from common.config import ServeConfig
from common.engine.kv_cache import KVCache
from common.errors import ConfigError
from common.instance.part import choose_device
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.identity import KVIdentity
from kv_transfer.region import KVRegion
from kv_transfer.transport.base import Transport
from kv_transfer.transport.multi import MultiTransport
from kv_transfer.transport.shared_storage import SharedStorageTransport


def transfer_config(config: ServeConfig) -> KVTransferConfig:
    """`--kv-transfer-config` (vLLM's JSON) or the plain flags, not both. Raises ConfigError."""
    if config.tensor_parallel_size > 1 and choose_device(config.device).type == "cuda":
        raise ConfigError(
            f"--tensor-parallel-size {config.tensor_parallel_size}: KV that is spread over GPUs is "
            "not handed over yet, by no connector; use --role both, or --device cpu"
        )
    if config.kv_transfer_config:
        if config.kv_connector:
            raise ConfigError("give either --kv-connector or --kv-transfer-config")
        return KVTransferConfig.parse(config.kv_transfer_config)
    name = config.kv_connector or "shm"
    if name == "shared_storage" and not config.kv_storage_dir:
        raise ConfigError("--kv-connector shared_storage needs --kv-storage-dir")
    return KVTransferConfig(
        connector=name, lease_s=config.kv_lease_s, storage_dir=config.kv_storage_dir
    )


def region_of(cache: KVCache) -> KVRegion:
    is_cuda = cache.device.type == "cuda"
    layout = cache.layout
    return KVRegion(
        cache.address,
        cache.num_blocks,
        cache.block_bytes,
        cache.fd,
        (cache.device.index or 0) if is_cuda else None,
        num_rows=layout.num_layers * 2 * layout.num_kv_heads,
        block_size=layout.block_size,
    )


def transport_of(settings: KVTransferConfig, cache: KVCache, info: KVIdentity) -> Transport:
    return make_transport(settings, region_of(cache), info)


def prefix_store(settings: KVTransferConfig, transport: Transport) -> SharedStorageTransport | None:
    """Where stored prefixes are to be found, if they are to be used."""
    config = settings.of("shared_storage")
    if config is None or not config.prefix_cache:
        return None
    if isinstance(transport, MultiTransport):
        transport = transport.transports["shared_storage"]
    assert isinstance(transport, SharedStorageTransport)
    return transport
