"""The LoRA adapters of one instance: which it serves, under which names, loaded and unloaded live.

    loading ──▶ served ──unload──▶ retired: no name, but its digest works on ──linger──▶ gone

A request knows its adapter by digest, so what has begun when a name goes finishes with what it
began with, here or on another instance. Knows no HTTP, no links and no engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.api.adapters import AdapterDoor
from common.engine_client import ModelCard, adapter_card
from common.errors import BadRequest, ConfigError, ModelNotFound, Unavailable, XpydError
from common.lora_modules import NAME_RULE, AdapterSource, is_adapter_name
from common.model.lora.adapter import Adapter
from common.model.lora.load import directory_inside
from common.wire import AdapterDone, AdapterInfo, LoadAdapter, UnloadAdapter

Read = Callable[[Path, Path | None], Adapter]  # a directory, and the root it must lie in


@dataclass(frozen=True, slots=True)
class AdapterLimits:
    max_adapters: int
    root: str  # where adapters may be loaded from while serving; "": nowhere
    linger_s: float  # that an unloaded one stays for requests on their way


@dataclass(frozen=True, slots=True)
class _Served:
    info: AdapterInfo
    created: int


class ServedAdapters:
    """`find` and `name_of` may be called from any thread; the rest in the event loop."""

    def __init__(
        self,
        read: Read,
        base: ModelCard,
        limits: AdapterLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.on_change: Callable[[], None] = lambda: None
        self._read = read
        self._base = base
        self._limits = limits
        self._clock = clock
        self._served: dict[str, _Served] = {}  # by name
        self._by_digest: dict[str, Adapter] = {}  # retired ones, too
        self._names: dict[str, str] = {}  # by digest: the last one
        self._retired: dict[str, float] = {}  # digest: until when it stays
        self._turn: asyncio.Lock | None = None

    # --- questions -------------------------------------------------------------------------------

    def find(self, digest: str) -> Adapter:
        """Raises ModelNotFound."""
        adapter = self._by_digest.get(digest)
        if adapter is None:
            raise ModelNotFound("this LoRA adapter is not loaded here (any more)", "model")
        return adapter

    def name_of(self, digest: str) -> str | None:
        return self._names.get(digest)

    def infos(self) -> tuple[AdapterInfo, ...]:
        """What proxies are told; retired ones have no name."""
        served = [served.info for served in self._served.values()]
        known = {info.digest for info in served}
        retired = [AdapterInfo("", digest) for digest in self._retired if digest not in known]
        return (*served, *retired)

    def cards(self) -> list[ModelCard]:
        return [adapter_card(self._base, s.info, s.created) for s in self._served.values()]

    @property
    def num_free(self) -> int:
        return self._limits.max_adapters - len(self._served)

    # --- changes ---------------------------------------------------------------------------------

    def load_now(self, source: AdapterSource) -> None:
        """At the start, for the operator: from anywhere. Raises ConfigError."""
        try:
            self._check_room(source.name)
            adapter = self._read(Path(source.path).expanduser(), None)
        except (BadRequest, ConfigError) as error:
            raise ConfigError(f"LoRA adapter {source.name}: {error.message}") from None
        self._serve(source, adapter)

    async def load(self, name: str, path: str) -> None:
        """Raises BadRequest, or PermissionDenied for a path outside of the root."""
        self._turn = self._turn or asyncio.Lock()
        async with self._turn:
            self._check_room(name)
            if not self._limits.root:
                raise BadRequest(
                    "loading adapters is off here; --lora-root names the directory for them",
                    "lora_path",
                )
            try:
                adapter = await asyncio.to_thread(self._read_inside, path)
            except ConfigError as error:
                raise BadRequest(error.message, "lora_path") from None
            self._serve(AdapterSource(name, path), adapter)
            self.on_change()

    async def unload(self, name: str) -> None:
        """Raises ModelNotFound."""
        served = self._served.pop(name, None)
        if served is None:
            raise ModelNotFound(f"there is no LoRA adapter {name[:64]!r}", "lora_name")
        digest = served.info.digest
        for other in self._served.values():
            if other.info.digest == digest:  # the same adapter under another name
                self._names[digest] = other.info.name
        self._retired[digest] = self._clock() + self._limits.linger_s
        self.on_change()
        asyncio.get_running_loop().call_later(self._limits.linger_s + 0.1, self.forget_retired)

    def forget_retired(self) -> None:
        """Let go of what has been retired for long enough and is not served again."""
        now = self._clock()
        in_use = {served.info.digest for served in self._served.values()}
        for digest in [d for d, until in self._retired.items() if until <= now or d in in_use]:
            del self._retired[digest]
            if digest not in in_use:
                del self._by_digest[digest], self._names[digest]
                self.on_change()

    # --- inside ----------------------------------------------------------------------------------

    def _check_room(self, name: str) -> None:
        if not is_adapter_name(name):
            raise BadRequest(f"the name of an adapter has {NAME_RULE}", "lora_name")
        if name == self._base.name:
            raise BadRequest(f"{name} is the name of the model itself", "lora_name")
        if name in self._served:
            raise BadRequest(f"a LoRA adapter {name!r} is loaded; unload it first", "lora_name")
        if self.num_free < 1:
            limit = self._limits.max_adapters
            raise BadRequest(f"{limit} LoRA adapters are loaded; --max-loras allows no more")
        if len(self._by_digest) >= 2 * self._limits.max_adapters:
            raise Unavailable("adapters that were unloaded are still kept for running requests")

    def _read_inside(self, path: str) -> Adapter:
        root = Path(self._limits.root)
        return self._read(directory_inside(root, path), root)

    def _serve(self, source: AdapterSource, adapter: Adapter) -> None:
        digest = adapter.digest
        parent = source.parent or self._base.name
        info = AdapterInfo(source.name, digest, source.path, parent)
        self._by_digest.setdefault(digest, adapter)
        self._names[digest] = source.name
        self._served[source.name] = _Served(info, int(time.time()))


class NoAdapters:
    """The same doors, of an instance that serves none."""

    async def load(self, name: str, path: str) -> None:
        raise BadRequest("this instance serves no LoRA adapters; start it with --enable-lora")

    async def unload(self, name: str) -> None:
        raise ModelNotFound(f"there is no LoRA adapter {name[:64]!r}", "lora_name")


async def carry_out(door: AdapterDoor, message: LoadAdapter | UnloadAdapter) -> AdapterDone:
    """What a proxy wishes, and what it is told."""
    try:
        if isinstance(message, LoadAdapter):
            await door.load(message.name, message.path)
        else:
            await door.unload(message.name)
    except XpydError as error:
        return AdapterDone(message.name, error.code, error.message)
    return AdapterDone(message.name)
