"""Every wire between the processes of a topology as a relay that can be broken on demand.

An instance announces an address of its own (127.0.0.11, .12, …), at which only its relays listen:
for the request link and the side channel, found by asking the instance, again and again, since a
restart has other ports. The registry has a relay as well. What breaks mends itself after the time
that was asked for, whatever becomes of whoever asked.

Orders come over a socket file, one JSON object a line. KV bytes that a connector moves through
shared memory, or over sockets of its own, pass no relay.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import aiohttp
import msgspec

from scripts.faults.relay import Relay

log = logging.getLogger(__name__)

POLL_S = 0.3
ASK_S = 5.0
MEND_AGAIN_S = 2.0
MAX_BROKEN_S = 600.0
MAX_LINE = 4096
REGISTRY = "registry"


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Break one link, or mend it (`mend`) before its time."""

    link: str  # prefill-0, decode-1, registry
    do: Literal["cut", "silence", "slow", "mend"]
    for_s: float = 0.0
    bytes_per_s: float = 65536.0  # of `slow`
    delay_s: float = 0.1


class Wire:
    """All relays of one instance, or the registry's; `broken_until` is a time of the loop's clock
    or 0."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.relays: dict[int, Relay] = {}  # by the target's port
        self.order: Order | None = None  # in force
        self.broken_until = 0.0

    async def lead_to(self, ports: set[int], own_port: int | None = None) -> None:
        """Relays for exactly these ports of 127.0.0.1, at the same ports of `host` or `own_port`.
        Those of ports that are gone are closed."""
        for port in self.relays.keys() - ports:
            await self.relays.pop(port).cut()
        for port in ports - self.relays.keys():
            relay = Relay(self.host, own_port or port, ("127.0.0.1", port))
            await relay.start()
            self.relays[port] = relay
            if self.order is not None:
                await _apply(relay, self.order)

    async def obey(self, order: Order, now: float) -> None:
        """Raises OSError where a relay cannot listen again; then it is still broken."""
        for relay in self.relays.values():
            await relay.mend()
            await _apply(relay, order)
        is_mended = order.do == "mend"
        self.order = None if is_mended else order
        self.broken_until = 0.0 if is_mended else now + order.for_s

    async def close(self) -> None:
        for relay in self.relays.values():
            await relay.cut()


class Links:
    """`instances`: name → the address that it announces. `ask(name)`: its `/instance`, or None."""

    def __init__(
        self,
        instances: Mapping[str, str],
        registry: tuple[int, int],
        ask: Callable[[str], Awaitable[Mapping[str, Any] | None]],
    ) -> None:
        """`registry`: the port that instances are told, and the one where it is."""
        self._wires = {name: Wire(host) for name, host in instances.items()}
        self._wires[REGISTRY] = Wire("127.0.0.1")
        self._registry = registry
        self._ask = ask
        self._tasks: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None

    async def start(self, control: Path) -> None:
        """`control`: a file to be, in a directory that is ours alone. Raises OSError where an
        address cannot be had."""
        announced, port = self._registry
        await self._wires[REGISTRY].lead_to({port}, announced)
        self._server = await asyncio.start_unix_server(self._serve, str(control), limit=MAX_LINE)
        loop = asyncio.get_running_loop()
        names = self._wires.keys() - {REGISTRY}
        self._tasks = [loop.create_task(self._follow(name)) for name in names]
        self._tasks.append(loop.create_task(self._mend_in_time()))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for wire in self._wires.values():
            await wire.close()

    async def obey(self, order: Order) -> str:
        """What is wrong with the order; "" if it was carried out."""
        wire = self._wires.get(order.link)
        if wire is None:
            return f"no link {order.link!r}; there are {', '.join(sorted(self._wires))}"
        if not (0.0 <= order.for_s <= MAX_BROKEN_S and order.delay_s >= 0 < order.bytes_per_s):
            return f"for_s: 0 to {MAX_BROKEN_S:.0f}; delay_s: 0 or more; bytes_per_s: above 0"
        await wire.obey(order, time.monotonic())
        return ""

    # --- inside ------------------------------------------------------------------------------

    async def _follow(self, name: str) -> None:
        """Keep the relays of an instance where the instance is. One that does not answer keeps
        what it has: it may be back."""
        wire = self._wires[name]
        while True:
            info = await self._ask(name)
            if info is not None:
                try:
                    await wire.lead_to(_ports(info))
                except OSError as error:  # somebody else has that port: in use until it restarts
                    log.warning("no relay for %s: %s", name, error)
            await asyncio.sleep(POLL_S)

    async def _mend_in_time(self) -> None:
        while True:
            now = time.monotonic()
            for name, wire in self._wires.items():
                if wire.order is None or now < wire.broken_until:
                    continue
                try:
                    await wire.obey(Order(name, "mend"), now)
                except OSError as error:
                    log.warning("the link of %s is not mended: %s", name, error)
                    wire.broken_until = now + MEND_AGAIN_S
            await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                try:
                    problem = await self.obey(msgspec.json.decode(line, type=Order))
                except (msgspec.DecodeError, OSError) as error:
                    problem = str(error)
                writer.write(msgspec.json.encode({"error": problem}) + b"\n")
                await writer.drain()
        except (OSError, ValueError):  # gone, or a line without end
            pass
        finally:
            writer.close()


def asker(
    urls: Mapping[str, str], keys: Sequence[str]
) -> Callable[[str], Awaitable[Mapping[str, Any] | None]]:
    """Asks instances by name for their `/instance`; None where there is no good answer."""
    headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}

    async def ask(name: str) -> Mapping[str, Any] | None:
        timeout = aiohttp.ClientTimeout(total=ASK_S)
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
                session.get(f"{urls[name]}/instance") as answer,
            ):
                return dict(await answer.json()) if answer.status == 200 else None
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError, ValueError):
            return None

    return ask


async def give_order(control: str, order: Order, timeout_s: float = 5.0) -> None:
    """To the launcher that holds the links. Raises OSError, or ValueError with its complaint."""
    reader, writer = await asyncio.wait_for(asyncio.open_unix_connection(control), timeout_s)
    try:
        writer.write(msgspec.json.encode(order) + b"\n")
        answer = await asyncio.wait_for(reader.readline(), timeout_s)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
    if not answer:
        raise ValueError("the launcher hung up")
    if problem := msgspec.json.decode(answer)["error"]:
        raise ValueError(problem)


def _ports(info: Mapping[str, Any]) -> set[int]:
    """Where others reach an instance: its request link, and the side channel if it has one."""
    endpoints = (info["endpoint"], info["side_channel"])
    return {port for endpoint in endpoints if endpoint and (port := urlsplit(endpoint).port)}


async def _apply(relay: Relay, order: Order) -> None:
    if order.do == "cut":
        await relay.cut()
    elif order.do == "silence":
        relay.silence()
    elif order.do == "slow":
        relay.slow(order.bytes_per_s, order.delay_s)
