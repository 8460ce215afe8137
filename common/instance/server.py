"""One running instance: HTTP side, request links, registration, drain. What all roles share.

The role is in the `Worker` (`roles.py`); this page is the life of the process around it:

    bind the port ─▶ load the engine ─▶ links and worker ─▶ register ─▶ serve ─▶ drain ─▶ close
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import replace
from typing import Any

import uvloop
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from common.addresses import bracketed, is_wildcard
from common.admission.admission import Admission
from common.api.adapters import PATHS as ADAPTER_PATHS
from common.api.adapters import AdapterDoor, add_adapter_doors
from common.api.app import create_app
from common.api.settings import ApiSettings, admission_limits, api_settings
from common.config import ServeConfig
from common.engine.local import LocalEngine
from common.engine_client import ModelCard
from common.errors import Unavailable, XpydError
from common.http_server import Tls, bind, refuse_open_bind, serve_app, tls_of, url_of
from common.instance.adapters import NoAdapters, carry_out
from common.instance.external_router import ExternalRouter, check_key
from common.instance.kv_event_format import no_name
from common.instance.kv_events import KVEventPublisher
from common.instance.kv_events_config import kv_events_config
from common.instance.link_settings import LinkSettings, link_settings
from common.instance.outbox import Send
from common.instance.parts import EngineParts, RankPlan, build_engine, pin_to_cores
from common.instance.prefix_report import PrefixReports
from common.instance.registration import Registration
from common.instance.request_link import RequestLinks
from common.instance.role_door import ROLE, add_role_door
from common.instance.role_metrics import RoleMetrics
from common.instance.roles import PlanRole, Roles
from common.instance.room import EngineRoom
from common.metrics import Metrics
from common.request import EngineRequest, TokenEvent
from common.text import TextModel
from common.thread_slice import ask_for_short_slices
from common.version import VERSION
from common.wire import (
    AdaptersChanged,
    InstanceInfo,
    Load,
    LoadAdapter,
    Role,
    RoleSet,
    SetRole,
    UnloadAdapter,
    WatchPrefixes,
    info_to_json,
)

log = logging.getLogger(__name__)


def run_instance(config: ServeConfig, plans: Mapping[Role, PlanRole], rank_program: str) -> int:
    """Blocks until a signal ends it; the exit status. Raises ConfigError before anything serves.

    plans:         the roles that this program can play
    rank_program:  the module that the other ranks of a tensor-parallel instance run
    """
    links = link_settings(config)
    plans[config.role](config)  # a wrong connector is refused before anything is loaded
    settings = replace(
        api_settings(config),
        peer_token=links.key.http_token if links.key else "",
        peer_paths=frozenset({"/instance"} if links.key else ()),
        own_guard_paths=frozenset({ROLE}) | ADAPTER_PATHS,
    )
    refuse_open_bind(
        config.host, has_keys=bool(settings.key_ring), is_allowed=config.allow_open_http
    )
    tls = tls_of(config.ssl_certfile, config.ssl_keyfile)
    kv_events_config(config.kv_events_config)  # refused before a model is loaded
    if config.allow_external_router:
        check_key(links.key)
    cores = pin_to_cores(config)
    listener = bind(config.host, config.port)  # first: a port in use should not cost a model load
    parts = build_engine(config, RankPlan(rank_program, cores))
    ask_for_short_slices()  # of this thread and those of the links; the engine's computes
    uvloop.run(_Instance(config, settings, links, tls, listener, parts).run(plans))
    return 0


class _Instance:
    def __init__(
        self,
        config: ServeConfig,
        settings: ApiSettings,
        links: LinkSettings,
        tls: Tls | None,
        listener: socket.socket,
        parts: EngineParts,
    ) -> None:
        self._config = config
        self._settings = settings
        self._listener = listener
        self._parts = parts
        self._link_settings = links
        self._tls = tls
        host = links.announce_host
        self._url = url_of(listener, tls, host if is_wildcard(config.host) else "")
        address = f"{bracketed(host)}:{listener.getsockname()[1]}"  # one of its kind in the fleet
        self._instance_id = address
        self._draining = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._registrations: list[Registration] = []

    async def run(self, plans: Mapping[Role, PlanRole]) -> None:
        parts, config = self._parts, self._config
        self._kv_events = self._publisher()
        parts.driver.start(asyncio.get_running_loop())
        self._adapter_door: AdapterDoor = parts.adapters or NoAdapters()
        cards = list if parts.adapters is None else parts.adapters.cards
        self._client = DrainingClient(LocalEngine(parts.driver, parts.card, cards), self._is_alive)
        room = EngineRoom(parts.engine.load, config.max_num_seqs)
        self._admission = Admission(room, admission_limits(config, config.max_num_waiting))
        self._links = RequestLinks(
            self._link_settings.bind,
            on_message=self._on_message,
            on_peer_lost=self._on_peer_lost,
            load=self._load,
            key=self._link_settings.key,
            announce_host=self._link_settings.announce_host,
        )
        self._external: ExternalRouter | None = None
        send: Send = self._links.send
        if config.allow_external_router:
            self._external = ExternalRouter(send, self._link_settings.key, self._is_alive)
            send = self._external.send
        self._roles = Roles(
            plans,
            config,
            self._instance_id,
            on_drain=self._links.announce_load,
            on_change=self._role_changed,
        )
        await self._roles.start(parts, send)
        if self._external is not None:
            self._external.worker = self._roles.worker
        self._prefixes = PrefixReports(
            parts.driver,
            self._links.send,
            self._roles.identity.incarnation,
            always=self._kv_events is not None,
        )
        if self._kv_events is not None:
            self._kv_events.start(parts.driver)
        if parts.adapters is not None:
            parts.adapters.on_change = self._adapters_changed
        app = self._app()
        self._links.start(self._info())
        self._registrations = [
            Registration(registry, self._info(), self._link_settings.key)
            for registry in config.registry
        ]
        log.info("%s instance at %s", config.role, self._url)
        try:
            await serve_app(
                app,
                self._listener,
                drain=self._drain,
                tls=self._tls,
                on_hangup=self._settings.reload_keys,
            )
        finally:
            await asyncio.gather(*(each.close() for each in self._registrations))
            await self._prefixes.close()
            await self._roles.close()
            await self._links.close()
            if self._kv_events is not None:
                await self._kv_events.close()
            await parts.driver.stop()
            if parts.ranks is not None:
                await asyncio.to_thread(parts.ranks.close)
            parts.cache.close()

    def _publisher(self) -> KVEventPublisher | None:
        config = kv_events_config(self._config.kv_events_config)
        if config is None:
            return None
        medium = "GPU" if self._parts.cache.device.type == "cuda" else "CPU"
        adapters = self._parts.adapters
        return KVEventPublisher(
            config,
            block_size=self._config.block_size,
            medium=medium,
            name_of=no_name if adapters is None else adapters.name_of,
        )

    def _on_message(self, peer: bytes, message: Any) -> None:
        if isinstance(message, WatchPrefixes):
            self._prefixes.watch(peer)
        elif isinstance(message, SetRole):
            self._spawn(self._set_role(peer, message))
        elif isinstance(message, LoadAdapter | UnloadAdapter):
            self._spawn(self._change_adapter(peer, message))
        else:
            self._roles.worker.handle(peer, message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_peer_lost(self, peer: bytes) -> None:
        self._prefixes.forget(peer)
        self._roles.worker.peer_lost(peer)

    async def _set_role(self, peer: bytes, message: SetRole) -> None:
        """A proxy's wish, and its answer."""
        try:
            await self._change_role(message.role, message.drain_s)
        except XpydError as error:
            self._links.send(peer, RoleSet(self._roles.role, error.code, error.message))
        else:
            self._links.send(peer, RoleSet(self._roles.role))

    async def _change_role(self, role: Role, drain_s: float | None) -> None:
        if self._draining:
            raise Unavailable("this instance is shutting down")
        await self._roles.switch(role, self._config.drain_timeout_s if drain_s is None else drain_s)

    def _role_changed(self) -> None:
        """Tell everybody, proxies first: what they sent to the old role, they send elsewhere."""
        info = self._info()
        self._prefixes.incarnation = info.incarnation
        self._links.announce(info)
        for registration in self._registrations:
            registration.announce(info)
        if self._external is not None:
            self._external.role_changed(self._roles.worker)
        self._role_metrics.refresh()

    async def _change_adapter(self, peer: bytes, message: LoadAdapter | UnloadAdapter) -> None:
        self._links.send(peer, await carry_out(self._adapter_door, message))

    def _adapters_changed(self) -> None:
        info = self._info()
        self._links.tell(info, AdaptersChanged(info.incarnation, info.adapters))

    def _info(self) -> InstanceInfo:
        parts, config = self._parts, self._config
        return InstanceInfo(
            instance_id=self._roles.identity.instance_id,
            incarnation=self._roles.identity.incarnation,
            role=self._roles.role,
            url=self._url,
            endpoint=self._links.endpoint,
            side_channel=self._roles.worker.side_channel,
            model=parts.card.name,
            model_path=str(parts.path.absolute()),
            max_model_len=parts.card.max_model_len,
            kv_fingerprint=parts.kv_fingerprint,
            kv_connector=self._roles.kv_connector,
            num_blocks=parts.cache.num_blocks,
            block_size=config.block_size,
            version=VERSION,
            max_num_seqs=config.max_num_seqs,
            adapters=() if parts.adapters is None else parts.adapters.infos(),
            pooled=parts.card.pooled,
        )

    def _app(self) -> FastAPI:
        config, parts = self._config, self._parts
        metrics = Metrics(f"{config.metrics_prefix}:", parts.card.name)
        self._register_metrics(metrics)
        text = TextModel.load(parts.path)
        app = create_app(
            self._client,
            lambda model: text,
            metrics,
            self._settings,
            admission=self._admission,
            hand_overs=self._external,
        )

        @app.get("/instance", include_in_schema=False)
        async def instance() -> Response:
            return Response(info_to_json(self._info()), media_type="application/json")

        @app.get("/kv_event_sources", include_in_schema=False)
        async def kv_event_sources() -> JSONResponse:
            return JSONResponse([] if self._kv_events is None else self._kv_events.sources())

        @app.get("/debug/kv", include_in_schema=False)
        async def ledger() -> JSONResponse:
            blocks = await parts.driver.call(lambda engine: engine.ledger())
            return JSONResponse({"blocks": blocks, **self._roles.worker.ledger()})

        add_adapter_doors(app, self._settings, keys=(config.admin_key,), door=self._adapter_door)
        add_role_door(
            app,
            self._settings,
            keys=(config.admin_key,),
            change=self._change_role,
            describe=lambda: info_to_json(self._info()),
        )
        return app

    def _register_metrics(self, metrics: Metrics) -> None:
        engine, cache = self._parts.engine, self._parts.cache
        metrics.gauge(
            "num_requests_running", "Sequences in the batch.", lambda: engine.load().num_running
        )
        metrics.gauge(
            "num_requests_waiting",
            "Sequences that wait for a step or for blocks.",
            lambda: engine.load().num_waiting + self._roles.worker.num_waiting(),
        )
        metrics.gauge(
            "kv_cache_usage_perc",
            "Share of blocks that are neither free nor evictable.",
            lambda: 1.0 - engine.load().free_blocks / cache.num_blocks,
        )
        for state in ("used", "held", "reserved"):
            metrics.gauge(
                f"kv_blocks_{state}",
                f"KV blocks that are {state}.",
                lambda state=state: engine.block_counts()[state],  # type: ignore[misc]
            )
        metrics.counter_from(
            "denied_peers",
            "Handshakes on the request link that ended without the cluster key, since the start.",
            lambda: self._links.denied,
        )
        self._parts.transfers.register(metrics)
        self._role_metrics = RoleMetrics(metrics, self._roles)

    def _is_alive(self) -> bool:
        """Progress, not presence: the engine's thread stepped lately or has nothing to do."""
        return not self._draining and not self._parts.driver.is_stuck()

    def _load(self) -> Load | None:
        if self._parts.driver.is_stuck():
            return None
        load = self._parts.engine.load()
        return Load(
            incarnation=self._roles.identity.incarnation,
            num_running=load.num_running,
            num_waiting=load.num_waiting + self._roles.worker.num_waiting(),
            num_waiting_tokens=load.num_waiting_tokens,
            free_blocks=load.free_blocks,
            total_blocks=load.total_blocks,
            is_draining=self._draining or self._roles.is_draining,
        )

    async def _drain(self) -> None:
        """Take no new work; let requests and leases end, for at most the configured time."""
        self._draining = True
        self._client.draining = True
        self._admission.close("this instance is shutting down")
        self._links.announce_load()
        deadline = time.monotonic() + self._config.drain_timeout_s
        while time.monotonic() < deadline:
            if not self._roles.worker.num_open() and not self._client.num_running:
                return
            await asyncio.sleep(0.05)
        log.warning("drain timed out with %d requests left", self._roles.worker.num_open())


class DrainingClient:
    """An `EngineClient` that refuses new work while the instance drains."""

    def __init__(self, engine: LocalEngine, is_alive: Callable[[], bool]) -> None:
        self._engine = engine
        self._is_alive = is_alive
        self.draining = False
        self.num_running = 0

    def models(self) -> list[ModelCard]:
        return self._engine.models()

    def is_ready(self) -> bool:
        return self._is_alive()

    async def generate(self, request: EngineRequest) -> AsyncGenerator[TokenEvent, None]:
        if self.draining:
            raise Unavailable("this instance is shutting down")
        self.num_running += 1
        events = self._engine.generate(request)
        try:
            async for event in events:
                yield event
        finally:
            self.num_running -= 1
            await events.aclose()
