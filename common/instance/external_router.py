"""Hand-overs that a router of somebody else drives, over the instance's own HTTP side.

To the worker this is one more proxy, in this process: requests go in as messages, and what would go
out to a proxy's link comes here. What the router carries from one instance to the next is sealed
(`common/handle_seal.py`); it can drop it or send it to the wrong place, not make or change it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

from common.cluster_key import ClusterKey
from common.errors import BadRequest, ConfigError, Unavailable, from_wire
from common.handle_seal import prompt_digest, seal, unseal
from common.instance.outbox import Send
from common.request import EngineRequest, TokenEvent
from common.unread import Unread
from common.wire import Abort, Accepted, Failed, KVHandle, RunPrefill, Tokens

FLAG = "--allow-external-router"
HERE = b""  # no link has this name
SILENCE_S = 30.0  # how often a request that hears nothing looks whether the engine lives
_PARAM = "kv_transfer_params"


@dataclass(frozen=True, slots=True)
class LoadHere:
    """As `RunDecode`, but nobody has the first token yet: it is sampled here. Never on a wire."""

    request: EngineRequest
    handle: KVHandle
    attempt: int = 1


def check_key(key: ClusterKey | None) -> ClusterKey:
    """Raises ConfigError without one."""
    if key is None:
        raise ConfigError(
            f"{FLAG} needs a cluster key (--cluster-key-file): instances seal with it what the "
            "router carries between them"
        )
    return key


class Handles(Protocol):
    def handle(self, peer: bytes, message: Any) -> None: ...


class _Inbox:
    """What one request has got, and its reader has not taken."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.is_given_up = False
        self._unread = Unread()

    def put(self, news: Any) -> None:
        if self.is_given_up:
            return
        self.queue.put_nowait(news)
        if isinstance(news, TokenEvent):
            self._unread.came(news)
            self.is_given_up = self._unread.is_too_much(self.queue.qsize())

    def taken(self, news: Any) -> Any:
        if isinstance(news, TokenEvent):
            self._unread.taken(news)
        return news


class ExternalRouter:
    def __init__(self, send: Send, key: ClusterKey | None, is_alive: Callable[[], bool]) -> None:
        """`send`: to the links of real proxies. `is_alive`: does the instance take work?"""
        self._links_send = send
        self._key = check_key(key).seal
        self._is_alive = is_alive
        self._inboxes: dict[str, _Inbox] = {}
        self.worker: Handles | None = None  # set before the first request

    def send(self, peer: bytes, message: Any) -> bool:
        """The worker's way out."""
        if peer != HERE:
            return self._links_send(peer, message)
        if isinstance(message, Tokens):
            for event in message.events:
                self._put(event.request_id, event)
        else:
            self._put(message.request_id, message)
        return True

    async def offer(self, request: EngineRequest) -> tuple[dict[str, Any], TokenEvent]:
        """Run the prompt and hold its KV: what the router must bring to the decode instance, and
        the first token. The lease begins to run."""
        handle: KVHandle | None = None
        with self._open(request, RunPrefill(request, 1)) as inbox:
            while True:
                news = await self._next(inbox)
                if isinstance(news, Accepted):
                    handle = news.handle
                elif isinstance(news, TokenEvent):
                    assert handle is not None, "accepted without a handle"
                    return self._params(handle, request), news

    async def load(
        self, request: EngineRequest, params: dict[str, Any]
    ) -> AsyncGenerator[TokenEvent, None]:
        """Fetch the KV that `params` came with and run on. Raises BadRequest for what is not ours;
        a load that fails later is computed here."""
        handle = self._unsealed(request, params)
        with self._open(request, LoadHere(request, handle)) as inbox:
            while True:
                news = await self._next(inbox)
                if isinstance(news, TokenEvent):
                    yield news
                    if news.finish_reason is not None:
                        return

    def role_changed(self, worker: Handles) -> None:
        """What the old role still ran is over: nobody carries it elsewhere, as a proxy would."""
        self.worker = worker
        for request_id, inbox in self._inboxes.items():
            inbox.put(Failed(request_id, 1, "unavailable", "this instance has taken another role"))

    # --- inside ------------------------------------------------------------------------------

    @contextmanager
    def _open(self, request: EngineRequest, message: Any) -> Iterator[_Inbox]:
        assert self.worker is not None
        if not self._is_alive():
            raise Unavailable("this instance takes no new work now")
        inbox = self._inboxes[request.request_id] = _Inbox()
        is_over = False
        try:
            self.worker.handle(HERE, message)
            yield inbox
            is_over = True
        finally:
            del self._inboxes[request.request_id]
            if not is_over:
                self.worker.handle(HERE, Abort(request.request_id))

    async def _next(self, inbox: _Inbox) -> Any:
        queue = inbox.queue
        while queue.empty():
            try:
                news = await asyncio.wait_for(queue.get(), SILENCE_S)
                break
            except asyncio.TimeoutError:
                if not self._is_alive():
                    raise Unavailable("the engine does not answer") from None
        else:
            news = queue.get_nowait()
        if isinstance(news, Failed):
            raise from_wire(news.code, news.message, news.param)
        return inbox.taken(news)

    def _put(self, request_id: str, news: Any) -> None:
        """A reader that takes nothing is given up: an error behind what came before."""
        inbox = self._inboxes.get(request_id)
        if inbox is None or inbox.is_given_up:
            return
        inbox.put(news)
        if inbox.is_given_up:
            stalled = Unavailable("the client does not read its answer")
            inbox.queue.put_nowait(Failed(request_id, 1, stalled.code, stalled.message))
            assert self.worker is not None
            self.worker.handle(HERE, Abort(request_id))

    def _params(self, handle: KVHandle, request: EngineRequest) -> dict[str, Any]:
        """Names and types as vLLM's NIXL connector answers them; only `remote_request_id` counts
        for us. Blocks are named over the side channel, so the list only is as long as theirs."""
        address = urlsplit(handle.side_channel)
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": handle.instance_id,
            "remote_request_id": seal(self._key, handle, request),
            "remote_block_ids": [list(range(handle.num_blocks))],
            "remote_host": address.hostname,
            "remote_port": address.port,
            "remote_num_tokens": handle.num_tokens,
            "remote_blocks_expiry_time": None,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "transfer_mode": "pull",
        }

    def _unsealed(self, request: EngineRequest, params: dict[str, Any]) -> KVHandle:
        text = params.get("remote_request_id")
        found = unseal(self._key, text) if isinstance(text, str) else None
        if found is None:
            raise BadRequest(
                "kv_transfer_params.remote_request_id was not made by an instance of this fleet; "
                "send what the prefill instance answered, unchanged",
                _PARAM,
            )
        if found.prompt != prompt_digest(request):
            raise BadRequest(
                "kv_transfer_params belong to another prompt: send the prefill instance and this "
                "one the same request, with the same key",
                _PARAM,
            )
        return found.handle
