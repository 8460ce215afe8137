"""`xpyd serve --role decode` and `--role both`: an instance around a `DecodeWorker`.

`both` is a decode instance without a KV consumer: every prompt comes whole.
"""

from __future__ import annotations

from dataclasses import replace

from common.config import ServeConfig
from common.instance.link_settings import link_settings
from common.instance.outbox import Send
from common.instance.parts import EngineParts
from common.instance.server import Identity, run_instance
from decode.worker import DecodeWorker
from kv_transfer.consumer import KVConsumer
from kv_transfer.identity import KVIdentity
from kv_transfer.setup import region_of, transfer_config, transport_of


def run(config: ServeConfig) -> int:
    if config.role == "both":
        return run_instance(replace(config, kv_connector=""), _make_whole_worker)
    settings = transfer_config(config)  # a wrong connector is refused before anything is loaded
    links = link_settings(config)

    async def make_worker(
        config: ServeConfig, parts: EngineParts, identity: Identity, send: Send
    ) -> DecodeWorker:
        info = KVIdentity(
            identity.instance_id, identity.incarnation, parts.kv_fingerprint, links.announce_host
        )
        consumer = KVConsumer(
            info,
            region_of(parts.cache),
            transport_of(settings, parts.cache, info),
            on_landed=lambda blocks: worker.landed(blocks),
            key=links.key,
        )
        worker = DecodeWorker(
            parts.driver,
            consumer,
            send,
            max_num_waiting=config.max_num_waiting,
            transfers=parts.transfers,
        )
        return worker

    return run_instance(replace(config, kv_connector=settings.connector), make_worker)


async def _make_whole_worker(
    config: ServeConfig, parts: EngineParts, identity: Identity, send: Send
) -> DecodeWorker:
    return DecodeWorker(parts.driver, None, send, max_num_waiting=config.max_num_waiting)
