"""The roles `decode` and `both`: a `DecodeWorker`, with a KV consumer and without.

`both` is a decode instance to which every prompt comes whole.
"""

from __future__ import annotations

from common.config import ServeConfig
from common.instance.link_settings import link_settings
from common.instance.outbox import Send
from common.instance.parts import EngineParts
from common.instance.roles import Identity, RolePlan
from decode.worker import DecodeWorker
from kv_transfer.connector import make_transport
from kv_transfer.consumer import KVConsumer
from kv_transfer.identity import KVIdentity
from kv_transfer.setup import prefix_store, region_of, transfer_config, transport_of
from kv_transfer.stored_prefix import StoredPrefix


def plan_decode(config: ServeConfig) -> RolePlan:
    """Raises ConfigError for a connector that cannot be."""
    settings = transfer_config(config)
    links = link_settings(config)

    async def make_worker(parts: EngineParts, identity: Identity, send: Send) -> DecodeWorker:
        info = KVIdentity(
            identity.instance_id, identity.incarnation, parts.kv_fingerprint, links.announce_host
        )
        transport = transport_of(settings, parts.cache, info)
        consumer = KVConsumer(
            info,
            region_of(parts.cache),
            transport,
            on_landed=lambda blocks: worker.landed(blocks),
            staging=lambda region, theirs: make_transport(settings, region, theirs),
            key=links.key,
        )
        store = prefix_store(settings, transport)
        worker = DecodeWorker(
            parts.driver,
            consumer,
            send,
            max_num_waiting=config.max_num_waiting,
            transfers=parts.transfers,
            stored=None if store is None else StoredPrefix(parts.driver, store),
        )
        return worker

    return RolePlan(settings.connector, make_worker)


def plan_both(config: ServeConfig) -> RolePlan:
    async def make_worker(parts: EngineParts, identity: Identity, send: Send) -> DecodeWorker:
        return DecodeWorker(parts.driver, None, send, max_num_waiting=config.max_num_waiting)

    return RolePlan("", make_worker)
