"""The prefill role: a `PrefillWorker` around a KV producer."""

from __future__ import annotations

from common.config import ServeConfig
from common.instance.link_settings import link_settings
from common.instance.outbox import Send
from common.instance.parts import EngineParts
from common.instance.roles import Identity, RolePlan
from kv_transfer.identity import KVIdentity
from kv_transfer.producer import KVProducer
from kv_transfer.setup import prefix_store, region_of, transfer_config, transport_of
from kv_transfer.stored_prefix import StoredPrefix
from prefill.worker import PrefillWorker


def plan_prefill(config: ServeConfig) -> RolePlan:
    """Raises ConfigError for a connector that cannot be."""
    settings = transfer_config(config)
    links = link_settings(config)

    async def make_worker(parts: EngineParts, identity: Identity, send: Send) -> PrefillWorker:
        driver = parts.driver
        info = KVIdentity(
            identity.instance_id, identity.incarnation, parts.kv_fingerprint, links.announce_host
        )
        transport = transport_of(settings, parts.cache, info)
        producer = KVProducer(
            info,
            region_of(parts.cache),
            transport,
            free=lambda blocks: driver.post(lambda engine: engine.free(blocks)),
            epochs=parts.engine.epochs,
            lease_s=settings.lease_s,
            key=links.key,
        )
        try:
            await producer.start(links.bind, links.announce_host)
        except BaseException:
            await producer.close()
            raise
        store = prefix_store(settings, transport)
        stored = None if store is None else StoredPrefix(driver, store)
        return PrefillWorker(driver, producer, send, block_size=config.block_size, stored=stored)

    return RolePlan(settings.connector, make_worker)
