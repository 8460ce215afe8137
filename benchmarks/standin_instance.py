"""A token engine without a model: speaks the instance protocol, with made-up but fixed tokens.

    python -m benchmarks.standin_instance --role decode --registry 127.0.0.1:30001

Token number i of an answer is a pure function of the prompt and i, so whoever continues a request
continues the same answer, and a test knows what must come out. A prefill stand-in offers its "KV"
on a side channel of one line per fetch (`offer id` → `first token`), so that a killed, stopped or
aborted producer is felt on the other side as a real one would be. It moves no bytes of KV.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import uvloop

from benchmarks.standin_prefixes import StandinPrefixes
from benchmarks.standin_role import take_role
from common.engine.prefix import PrefixHasher
from common.errors import BadRequest, Overloaded, PeerLost, XpydError
from common.request import EngineRequest, FinishReason, TokenEvent, TokenLogprob
from common.rpc import Link, Listener
from common.waterfall import EXPOSED, KV_BLOCKS, KV_BYTES, PREFILL, PREFILL_QUEUE, TRANSFER
from common.wire import (
    MAX_MESSAGE_BYTES,
    MAX_REGISTRY_MESSAGE_BYTES,
    Abort,
    Accepted,
    Decoder,
    Deregister,
    Failed,
    Hello,
    InstanceInfo,
    KVHandle,
    Load,
    Prefixes,
    Register,
    Role,
    RunDecode,
    RunPrefill,
    RunWhole,
    SetRole,
    ToInstance,
    Tokens,
    ToProxy,
    WatchPrefixes,
    Welcome,
    info_to_json,
)

EOS = 2
PEER_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Standin:
    """What the stand-in says of itself and how slow it is. Delays in seconds."""

    role: Role = "both"
    instance_id: str = ""
    model: str = "stand-in"
    model_path: str = ""
    kv_fingerprint: str = "standin"
    kv_connector: str = "standin"
    registry: str = ""  # host:port
    port: int = 0  # of the HTTP side
    endpoint_port: int = 0  # of the request link
    prefill_s: float = 0.0
    prefill_token_s: float = 0.0
    step_s: float = 0.005
    vocab_size: int = 256
    first_id: int = 32  # tokens are first_id … first_id + vocab_size - 1
    max_waiting: int = 4096
    max_num_seqs: int = 4096  # as it says; it runs whatever comes
    fail_fetch: bool = False  # every hand-over fails
    fail_fetch_from: str = ""  # those of this prefill instance do
    max_cached_blocks: int = 0  # of its prefix cache; 0: it has none
    recompute: bool = True  # a failed hand-over is computed here instead


def answer_token(prompt: Sequence[int], index: int, config: Standin) -> int:
    """Token number `index` of the answer to `prompt`."""
    digest = zlib.crc32(repr((len(prompt), sum(prompt), prompt[-1], index)).encode())
    return config.first_id + digest % config.vocab_size


@dataclass(slots=True)
class _Sequence:
    request: EngineRequest
    peer: bytes
    attempt: int
    next_index: int
    last_index: int
    timings: dict[str, float] = field(default_factory=dict)  # for its first event

    def event(self, config: Standin) -> TokenEvent:
        index, sampling = self.next_index, self.request.sampling
        token = answer_token(self.request.prompt_token_ids, index, config)
        stops = token in sampling.stop_token_ids and index >= sampling.min_tokens
        reason = FinishReason.STOP if stops else None
        if index == self.last_index:
            reason = reason or FinishReason.LENGTH
        probs = () if sampling.logprobs is None else (TokenLogprob(-0.5, 1, ((token, -0.5),)),)
        timings, self.timings = self.timings, {}
        return TokenEvent(
            self.request.request_id, index, (token,), probs, (), reason, timings=timings
        )


@dataclass(slots=True)
class _Offer:
    request_id: str
    peer: bytes
    first_token: asyncio.Future[int] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class StandinInstance:
    """`await start()`, then `info` names its addresses; `await close()` ends it like a crash."""

    def __init__(self, config: Standin) -> None:
        self.config = config
        self.is_draining = False
        self.seen: list[Any] = []  # every message but Hello, for tests
        self.sequences: dict[str, _Sequence] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.offers: dict[str, _Offer] = {}
        self.peers: dict[bytes, float] = {}
        self.prefixes = StandinPrefixes(
            PrefixHasher(config.kv_fingerprint, 32), 32, config.max_cached_blocks
        )
        self._waiting_tokens = 0
        self._work = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        config = self.config
        self._listener = Listener(
            f"tcp://127.0.0.1:{config.endpoint_port}",
            Decoder(ToInstance),
            self._on_message,
            max_bytes=MAX_MESSAGE_BYTES,
        )
        self._http = await asyncio.start_server(self._serve_http, "127.0.0.1", config.port)
        self._side = await asyncio.start_server(self._serve_fetch, "127.0.0.1", 0)
        http_port, side_port = (s.sockets[0].getsockname()[1] for s in (self._http, self._side))
        self.address = f"127.0.0.1:{http_port}"
        self.info = InstanceInfo(
            instance_id=config.instance_id or f"{config.role}-{http_port}",
            incarnation=uuid.uuid4().hex,
            role=config.role,
            url=f"http://{self.address}",
            endpoint=self._listener.endpoint,
            side_channel=f"tcp://127.0.0.1:{side_port}",
            model=config.model,
            model_path=config.model_path,
            max_model_len=8192,
            kv_fingerprint=config.kv_fingerprint,
            kv_connector=config.kv_connector,
            num_blocks=4096,
            block_size=32,
            max_num_seqs=config.max_num_seqs,
        )
        loops = [self._step_loop(), self._beat()]
        if config.registry:
            loops.append(self._register())
        self._background = [asyncio.create_task(loop) for loop in loops]

    async def close(self, *, goodbye: bool = False) -> None:
        """Stop at once; with `goodbye`, leave the registry first."""
        self._goodbye = goodbye
        tasks = [*self._background, *self.tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in (self._http, self._side):
            server.close()
        for writer in list(self._connections):
            writer.transport.abort()
        await self._listener.close()

    # --- messages ----------------------------------------------------------------------------

    def _on_message(self, peer: bytes, message: Any) -> None:
        is_new = peer not in self.peers
        self.peers[peer] = time.monotonic()
        if isinstance(message, Hello):
            if is_new:
                self._listener.send(peer, Welcome(self.info))
                self._listener.send(peer, self.load())
            return
        self.seen.append(message)
        if isinstance(message, WatchPrefixes):
            self.prefixes.report(self._listener.send, self.info.incarnation, peer)
        elif isinstance(message, SetRole):
            self._background.append(asyncio.create_task(take_role(self, peer, message)))
        elif isinstance(message, Abort):
            self.abort(message.request_id)
        elif isinstance(message, (RunPrefill, RunDecode, RunWhole)):
            work = self._run(peer, message)
            self.tasks[message.request.request_id] = asyncio.create_task(work)

    def abort(self, request_id: str) -> None:
        self.sequences.pop(request_id, None)
        if task := self.tasks.pop(request_id, None):
            task.cancel()
        for offer_id in [o for o, offer in self.offers.items() if offer.request_id == request_id]:
            self._end_offer(offer_id)

    def send(self, peer: bytes, message: msgspec.Struct) -> None:
        self._listener.send(peer, message)

    def tell_all(self, message: msgspec.Struct) -> None:
        for peer in self.peers:
            self._listener.send(peer, message)

    def drop_all(self) -> None:
        """Whatever it runs is over, unanswered."""
        for request_id in [*self.sequences, *self.tasks]:
            self.abort(request_id)
        for offer_id in list(self.offers):
            self._end_offer(offer_id)

    def load(self) -> Load:
        has_blocks = self.info.role == "decode"  # who fetches waits for nothing of ours
        return Load(
            incarnation=self.info.incarnation,
            num_running=len(self.sequences) + (len(self.tasks) if has_blocks else 0),
            num_waiting=0 if has_blocks else len(self.tasks),
            num_waiting_tokens=self._waiting_tokens,
            free_blocks=self.info.num_blocks - len(self.sequences) - len(self.offers),
            total_blocks=self.info.num_blocks,
            is_draining=self.is_draining,
        )

    # --- one request -------------------------------------------------------------------------

    async def _run(self, peer: bytes, message: RunPrefill | RunDecode | RunWhole) -> None:
        request_id = message.request.request_id
        try:
            if len(self.tasks) > self.config.max_waiting:
                raise Overloaded("the stand-in's queue is full")
            if isinstance(message, RunPrefill):
                await self._prefill(peer, message)
            elif isinstance(message, RunDecode):
                await self._decode(peer, message)
            else:
                self._listener.send(peer, Accepted(request_id, message.attempt))
                await self._compute_prompt(message.request)
                self._decode_from(peer, message, len(message.request.output_token_ids))
        except XpydError as error:
            failed = Failed(request_id, message.attempt, error.code, error.message, error.param)
            self._listener.send(peer, failed)
        finally:
            if self.tasks.get(request_id) is asyncio.current_task():
                del self.tasks[request_id]

    async def _prefill(self, peer: bytes, message: RunPrefill) -> None:
        request, info = message.request, self.info
        if self.info.role == "decode":
            raise BadRequest("this is a decode instance")
        offer_id = uuid.uuid4().hex
        offer = self.offers[offer_id] = _Offer(request.request_id, peer)
        base = len(request.output_token_ids)
        num_tokens = len(request.prompt_token_ids) + base
        handle = KVHandle(
            offer_id,
            info.instance_id,
            info.incarnation,
            info.side_channel,
            info.kv_connector,
            info.kv_fingerprint,
            num_tokens,
            -(-num_tokens // info.block_size),
        )
        self._listener.send(peer, Accepted(request.request_id, message.attempt, handle))
        began = time.monotonic()
        await self._compute_prompt(request)
        timings = {PREFILL_QUEUE: 0.0, PREFILL: time.monotonic() - began}
        last = request.sampling.max_tokens - 1
        event = _Sequence(request, peer, message.attempt, base, last, timings).event(self.config)
        self._listener.send(peer, Tokens((event,), (message.attempt,)))
        if offer_id in self.offers:
            offer.first_token.set_result(event.token_ids[0])

    async def _decode(self, peer: bytes, message: RunDecode) -> None:
        base = len(message.request.output_token_ids)
        self._listener.send(peer, Accepted(message.request.request_id, message.attempt))
        began = time.monotonic()
        try:
            await self._fetch(message.handle)
        except PeerLost:
            if message.has_other_source or not self.config.recompute:
                raise
            await self._compute_prompt(message.request)
            self._decode_from(peer, message, base)
        else:
            spent = {TRANSFER: time.monotonic() - began, EXPOSED: 0.0}
            counts = {KV_BYTES: 0.0, KV_BLOCKS: float(message.handle.num_blocks)}
            self._decode_from(peer, message, base + 1, spent | counts)

    def _decode_from(
        self,
        peer: bytes,
        message: RunDecode | RunWhole,
        index: int,
        timings: Mapping[str, float] = {},
    ) -> None:
        request = message.request
        last = request.sampling.max_tokens - 1
        if index <= last:
            self.sequences[request.request_id] = _Sequence(
                request, peer, message.attempt, index, last, dict(timings)
            )
            self._work.set()

    async def _compute_prompt(self, request: EngineRequest) -> None:
        num_tokens, changes = self.prefixes.run(request)
        self.prefixes.tell(self._listener.send, self.info.incarnation, changes)
        self._waiting_tokens += num_tokens
        try:
            await asyncio.sleep(self.config.prefill_s + num_tokens * self.config.prefill_token_s)
        finally:
            self._waiting_tokens -= num_tokens

    # --- the hand-over -----------------------------------------------------------------------

    async def _fetch(self, handle: KVHandle) -> int:
        """The first token, once the producer has computed all. Raises PeerLost."""
        host, _, port = handle.side_channel.removeprefix("tcp://").rpartition(":")
        lost = PeerLost("the producer did not hand over")
        if self.config.fail_fetch or handle.instance_id == self.config.fail_fetch_from:
            raise lost
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            raise lost from None
        try:
            writer.write(f"{handle.offer_id}\n".encode())
            return int(await reader.readline())
        except (ValueError, OSError):
            raise lost from None
        finally:
            writer.close()

    async def _serve_fetch(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._connections.add(writer)
        with contextlib.suppress(OSError, asyncio.CancelledError):
            offer_id = (await reader.readline()).decode("latin-1").strip()
            if offer := self.offers.get(offer_id):
                token = await offer.first_token
                writer.write(f"{token}\n".encode())
                await writer.drain()
                self._end_offer(offer_id)
        self._connections.discard(writer)
        writer.close()

    def _end_offer(self, offer_id: str) -> None:
        if offer := self.offers.pop(offer_id, None):
            offer.first_token.cancel()

    # --- loops -------------------------------------------------------------------------------

    async def _step_loop(self) -> None:
        """One message per proxy and step, as the engine sends them. Idle, it sleeps: cores are
        what the router under test waits for."""
        while True:
            if not self.sequences:
                self._work.clear()
                await self._work.wait()
            await asyncio.sleep(self.config.step_s)
            batches: dict[bytes, tuple[list[TokenEvent], list[int]]] = {}
            for request_id, sequence in list(self.sequences.items()):
                event = sequence.event(self.config)
                events, attempts = batches.setdefault(sequence.peer, ([], []))
                events.append(event)
                attempts.append(sequence.attempt)
                sequence.next_index += 1
                if event.finish_reason is not None:
                    del self.sequences[request_id]
            for peer, (events, attempts) in batches.items():
                self._listener.send(peer, Tokens(tuple(events), tuple(attempts)))

    async def _beat(self) -> None:
        while True:
            now = time.monotonic()
            for peer, heard in list(self.peers.items()):
                if now - heard > PEER_TIMEOUT_S:
                    del self.peers[peer]
                    self.prefixes.watchers.pop(peer, None)
                    self._forget(peer)
                else:
                    self._listener.send(peer, self.load())
            self.prefixes.tell(self._listener.send, self.info.incarnation, Prefixes("", 0))
            await asyncio.sleep(0.5)

    def _forget(self, peer: bytes) -> None:
        for request_id in [r for r, s in self.sequences.items() if s.peer == peer]:
            del self.sequences[request_id]
        for offer_id in [o for o, offer in self.offers.items() if offer.peer == peer]:
            self._end_offer(offer_id)

    async def _register(self) -> None:
        self._goodbye = False
        link = Link(
            f"tcp://{self.config.registry}",
            Decoder(ToProxy),
            lambda message: None,
            max_bytes=MAX_REGISTRY_MESSAGE_BYTES,
        )
        try:
            while True:
                link.send(Register(self.info))
                await asyncio.sleep(1.0)
        finally:
            if self._goodbye:
                link.send(Deregister(self.info.instance_id, self.info.incarnation))
            await link.close()

    async def _serve_http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Just enough for `GET /instance` and `GET /health`."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            body = info_to_json(self.info) if head.startswith(b"GET /instance ") else b"{}"
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(body), body)
            )
            await writer.drain()
        writer.close()


def parse(arguments: list[str] | None = None) -> Standin:
    parser = argparse.ArgumentParser(description="A token engine without a model.")
    defaults = Standin()
    for name in Standin.__dataclass_fields__:
        value = getattr(defaults, name)
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=value)
        else:
            parser.add_argument(flag, type=type(value), default=value)
    return Standin(**vars(parser.parse_args(arguments)))


async def _main(config: Standin) -> None:
    instance = StandinInstance(config)
    await instance.start()
    print(instance.address, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main(parse()))
