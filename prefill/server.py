"""`xpyd serve --role prefill`: an instance around a `PrefillWorker` and its KV producer."""

from __future__ import annotations

from dataclasses import replace

from common.config import ServeConfig
from common.instance.link_settings import link_settings
from common.instance.outbox import Send
from common.instance.parts import EngineParts
from common.instance.server import Identity, run_instance
from kv_transfer.identity import KVIdentity
from kv_transfer.producer import KVProducer
from kv_transfer.setup import prefix_store, region_of, transfer_config, transport_of
from prefill.stored_prefix import StoredPrefix
from prefill.worker import PrefillWorker


def run(config: ServeConfig) -> int:
    settings = transfer_config(config)  # a wrong connector is refused before anything is loaded
    links = link_settings(config)

    async def make_worker(
        config: ServeConfig, parts: EngineParts, identity: Identity, send: Send
    ) -> PrefillWorker:
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
        await producer.start(links.bind, links.announce_host)
        store = prefix_store(settings, transport)
        stored = None if store is None else StoredPrefix(driver, store)
        return PrefillWorker(driver, producer, send, block_size=config.block_size, stored=stored)

    return run_instance(replace(config, kv_connector=settings.connector), make_worker)
