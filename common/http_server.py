"""Run one FastAPI app until SIGTERM or SIGINT: bind early, serve, drain, exit.

The first signal starts the drain (the caller refuses new work and waits for running work); a second
signal, or the end of the drain, stops the server. What a connection may do is bounded in
`http_protocol.py`. Knows nothing of what the app does.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import uvicorn
from fastapi import FastAPI

from common.addresses import bracketed, is_loopback
from common.errors import ConfigError
from common.http_protocol import GuardedProtocol, HttpLimits

SWEEP_S = 0.5
DEFAULT_LIMITS = HttpLimits()


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files; `keyfile` may be empty if the certificate's file holds the key as well."""

    certfile: str
    keyfile: str = ""

    def check(self) -> None:
        """Raises ConfigError, now rather than at the first connection."""
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certfile, self.keyfile or None)
        except OSError as error:  # ssl.SSLError is one
            reason = error.strerror or "not a certificate with its key"
            raise ConfigError(f"--ssl-certfile {self.certfile}: {reason}") from None


def tls_of(certfile: str, keyfile: str) -> Tls | None:
    """From the two flags. Raises ConfigError if they cannot serve."""
    if not certfile:
        if keyfile:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return None
    tls = Tls(certfile, keyfile)
    tls.check()
    return tls


def refuse_open_bind(host: str, *, has_keys: bool, is_allowed: bool) -> None:
    """Raises ConfigError if strangers could use what listens at `host`."""
    if not (is_loopback(host) or has_keys or is_allowed):
        raise ConfigError(
            f"--host {host} without an API key serves everybody who can reach it: give --api-key "
            "or --api-key-file, or --allow-open-http on a private network or behind a gateway"
        )


def bind(host: str, port: int, *, is_shared: bool = False, listen: bool = True) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises ConfigError with one line if it
    cannot.

    is_shared:  other processes of this user that say so, too, may listen at the same port; the
                kernel deals connections out among them
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if listen:
            listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} on {host} is in use; choose another with --port"
            ) from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    listener.setblocking(False)
    return listener


def bind_file(path: str) -> socket.socket:
    """A listening Unix socket in place of whatever was there: the directory is the caller's."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(128)
    listener.setblocking(False)
    return listener


def url_of(listener: socket.socket, tls: Tls | None = None, host: str = "") -> str:
    """`host`: to be named instead of the bound address."""
    bound, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{bracketed(host or bound)}:{port}"


async def serve_app(
    app: FastAPI,
    listener: socket.socket,
    *,
    drain: Callable[[], Awaitable[None]],
    stopped: asyncio.Event | None = None,
    limits: HttpLimits = DEFAULT_LIMITS,
    tls: Tls | None = None,
    on_hangup: Callable[[], None] | None = None,
    also: Sequence[socket.socket] = (),
) -> None:
    """Serve until a signal, then drain and stop. Returns when everything is closed.

    `stopped`: serve until it is set instead; signals are the caller's then.
    `on_hangup`: what SIGHUP does, if anything.
    `also`: more sockets of the same app.
    """
    limits = replace(limits, max_connections=min(limits.max_connections, _room_for_sockets()))
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,  # nothing here asks who the client is
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            http=cast(Any, partial(GuardedProtocol, limits=limits)),
            ws="none",
            ssl_certfile=tls.certfile if tls else None,
            ssl_keyfile=(tls.keyfile or None) if tls else None,
        )
    )
    asked = stopped or asyncio.Event()
    with contextlib.nullcontext() if stopped else _signals(asked, server, on_hangup):
        sweeping = asyncio.create_task(_sweep(server))
        serving = asyncio.create_task(server.serve([listener, *also]))
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            draining = asyncio.create_task(_quietly(drain))
            await asyncio.wait({serving, draining}, return_when=asyncio.FIRST_COMPLETED)
            draining.cancel()
            server.should_exit = True
        waiting.cancel()
        await serving
        sweeping.cancel()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # ours, in `serve_app`, drain first
        yield


async def _sweep(server: uvicorn.Server) -> None:
    """Clients that are slow, or read nothing, lose their connections."""
    loop = asyncio.get_running_loop()
    while True:
        await asyncio.sleep(SWEEP_S)
        now = loop.time()
        for connection in list(server.server_state.connections):
            cast(GuardedProtocol, connection).sweep(now)


def _room_for_sockets() -> int:
    """Half of what this process may open: the rest is for everything else."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return DEFAULT_LIMITS.max_connections if allowed < 0 else max(1, allowed // 2)


async def _quietly(drain: Callable[[], Awaitable[None]]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await drain()


@contextlib.contextmanager
def _signals(
    asked: asyncio.Event, server: uvicorn.Server, on_hangup: Callable[[], None] | None
) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if asked.is_set():
            server.should_exit = True
            server.force_exit = True
        asked.set()

    handlers = {signal.SIGTERM: on_signal, signal.SIGINT: on_signal}
    if on_hangup is not None:
        handlers[signal.SIGHUP] = on_hangup
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
