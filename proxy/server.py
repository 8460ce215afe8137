"""The proxy process: settings in, exit status out. Puts the parts together and knows no protocol.

bind ports ─▶ fleet and app ─▶ serve ─▶ signal: refuse new, finish running ─▶ close
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

import uvloop
import zmq
from fastapi import FastAPI
from starlette.middleware import Middleware

from common.addresses import tcp_endpoint
from common.admission.admission import AdmissionLimits
from common.admission.ledger import Ledger
from common.api.adapters import PATHS as ADAPTER_PATHS
from common.api.adapters import add_adapter_doors
from common.api.app import create_app
from common.api.observe import RequestMetrics
from common.api.settings import ApiSettings
from common.cluster_key import ClusterKey
from common.errors import ConfigError
from common.http_server import Tls, bind, bind_file, refuse_open_bind, serve_app, url_of
from common.metrics import Metrics
from common.rpc import check_bind
from common.thread_slice import ask_for_short_slices
from proxy.admin import OWN_GUARD_PATHS, add_admin, add_pages
from proxy.advice import Targets
from proxy.choreography import Limits
from proxy.controller import Controller, Mode
from proxy.disaggregation import Disaggregation
from proxy.membership import Membership, Timing
from proxy.policies import POLICIES
from proxy.relay import Fleet
from proxy.siblings import Place, Siblings, ledger_in, wishes_in
from proxy.status import own_part, register_metrics
from proxy.texts import Texts
from proxy.wishes import read_wishes

log = logging.getLogger(__name__)

WARM_UP_S = 5.0  # that a worker waits for instances before it listens


@dataclass(frozen=True, slots=True)
class ProxySettings:
    host: str = "127.0.0.1"
    port: int = 8000
    registry_host: str = "127.0.0.1"
    registry_port: int | None = 30001  # 0: any free one; None: no registry
    followed_registry: str = ""  # tcp://host:port of somebody else's, that passes on to us
    place: Place | None = None  # among the workers of this port
    prefill: tuple[str, ...] = ()  # host:port of the HTTP side of instances
    decode: tuple[str, ...] = ()
    prefill_policy: str = "least_loaded"
    decode_policy: str = "least_loaded"
    admission: AdmissionLimits = AdmissionLimits()
    disaggregation: Disaggregation = Disaggregation()
    tokenizer: str = ""  # directory; default: the instances' model_path
    api: ApiSettings = ApiSettings()
    admin_key: str = ""  # none: the admin API is off
    cluster_key: ClusterKey | None = None  # that instances must hold, too
    controller: Mode = "off"
    targets: Targets = Targets()  # of the controller
    tls: Tls | None = None
    allow_open_http: bool = False
    metrics_prefix: str = "xpyd"
    drain_s: float = 30.0  # that running requests get after the first signal
    limits: Limits = Limits()
    timing: Timing = Timing()

    def __post_init__(self) -> None:
        for name in (self.prefill_policy, self.decode_policy):
            if name not in POLICIES:
                raise ConfigError(f"unknown policy {name!r}; there are {', '.join(POLICIES)}")
        has_keys = bool(self.api.key_ring or self.api.api_keys)
        refuse_open_bind(self.host, has_keys=has_keys, is_allowed=self.allow_open_http)
        if self.registry_port is not None:
            check_bind(self.registry_host, self.cluster_key)


def run(settings: ProxySettings) -> int:
    """Serve until SIGTERM or SIGINT; the process's exit status."""
    ask_for_short_slices()  # engines may compute on the same cores
    return uvloop.run(serve(settings))


async def serve(settings: ProxySettings) -> int:
    """0 after a clean stop; 1, and one line on stderr, if it cannot start."""
    try:
        is_shared = settings.place is not None
        listener = bind(settings.host, settings.port, is_shared=is_shared, listen=not is_shared)
    except ConfigError as error:
        return _cannot_start(error.message)
    place = settings.place
    ledger = None
    if place is not None:
        ledger = Ledger(ledger_in(place.directory), place.number, place.count)
    fleet = build_fleet(settings, ledger)
    try:
        fleet.start(_registry_endpoint(settings), settings.followed_registry)
    except zmq.ZMQError as error:
        listener.close()
        await fleet.close()
        reason = os.strerror(error.errno or 0)
        return _cannot_start(f"cannot listen on registry port {settings.registry_port}: {reason}")
    log.info("proxy at %s", url_of(listener, settings.tls))
    if fleet.links.registry is not None:
        log.info("registry at %s", fleet.links.registry.endpoint)
    try:
        app = build_app(settings, fleet, ledger)
        await serve_app(
            app,
            listener,
            drain=lambda: drain(fleet, settings.drain_s),
            tls=settings.tls,
            on_hangup=settings.api.reload_keys,
            also=_own_socket(settings.place),
        )
    finally:
        await fleet.close()
    return 0


def build_fleet(settings: ProxySettings, ledger: Ledger | None = None) -> Fleet:
    membership, place = Membership(timing=settings.timing), settings.place
    wishes = read_wishes(wishes_in(place.directory)) if place is not None else None
    if wishes is not None:
        membership.take_over(wishes)
    else:
        for address in dict.fromkeys((*settings.prefill, *settings.decode)):
            membership.watch(address, "static")
    return Fleet(
        membership,
        limits=settings.limits,
        admission=settings.admission,
        prefill_policy=settings.prefill_policy,
        decode_policy=settings.decode_policy,
        disaggregation=settings.disaggregation,
        key=settings.cluster_key,
        tally=ledger,
    )


def build_app(settings: ProxySettings, fleet: Fleet, ledger: Ledger | None = None) -> FastAPI:
    """The HTTP side of a fleet that the caller starts and closes. `ledger`: that all workers of
    the port keep."""
    texts = Texts(fleet, settings.tokenizer)
    fleet.can_read = texts.is_loaded
    work = [texts.keep_loaded]

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(each()) for each in work]
        if settings.place is not None:
            await _warm_up(fleet)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    api = replace(settings.api, own_guard_paths=OWN_GUARD_PATHS | ADAPTER_PATHS)
    metrics = Metrics(settings.metrics_prefix)
    observed = RequestMetrics(metrics)
    if settings.controller != "off" and (settings.place is None or settings.place.number == 0):
        controller = _controller(settings, fleet, observed)
        fleet.advice = controller.describe
        work.append(controller.run)
    app = create_app(
        fleet, texts, metrics, api, lifespan, fleet.admission, observed, buckets=ledger
    )
    register_metrics(metrics, fleet)
    add_pages(app, fleet, settings.api, observed)
    add_admin(app, fleet, api, settings.admin_key)
    add_adapter_doors(app, api, keys=(settings.admin_key,), door=fleet.adapters)
    part, wishes = partial(own_part, fleet, observed), fleet.membership.wishes
    if settings.place is not None:  # behind the gate, before whatever answers
        app.user_middleware.insert(
            -1, Middleware(Siblings, place=settings.place, part=part, wishes=wishes)
        )
    return app


def _controller(settings: ProxySettings, fleet: Fleet, observed: RequestMetrics) -> Controller:
    def latencies() -> tuple[float | None, float | None]:
        recent = observed.recent()
        return recent["ttft"]["p90"], recent["itl"]["p90"]

    return Controller(fleet, settings.controller, settings.targets, latencies)


async def _warm_up(fleet: Fleet) -> None:
    """A worker takes its share of the connections from the moment it listens: it should be able to
    answer them, if anybody is there to do the work."""
    deadline = time.monotonic() + WARM_UP_S
    while not fleet.is_ready():
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(0.05)


async def drain(fleet: Fleet, drain_s: float) -> None:
    """Refuse what is new; wait for what runs, but not for ever."""
    fleet.is_draining = True
    fleet.admission.close("the proxy is shutting down")
    try:
        await asyncio.wait_for(fleet.idle.wait(), drain_s)
    except asyncio.TimeoutError:
        log.warning("drain timed out with %d requests left", fleet.num_in_flight)


def _registry_endpoint(settings: ProxySettings) -> str:
    if settings.registry_port is None:
        return ""
    return tcp_endpoint(settings.registry_host, settings.registry_port)


def _own_socket(place: Place | None) -> list[socket.socket]:
    """Where the other workers reach this one."""
    return [] if place is None else [bind_file(str(place.socket_of(place.number)))]


def _cannot_start(reason: str) -> int:
    print(f"xpyd proxy: {reason}", file=sys.stderr)
    return 1
