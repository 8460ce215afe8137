"""LoRA adapters over a fleet: which names it serves, and the administrator's wishes, told to all.

An adapter is known by its digest. Where two instances hold different files under one name, a
request goes to those that hold one of them: what one computes the other never continues.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial

import msgspec

from common.engine_client import ModelCard, adapter_card
from common.errors import (
    BadRequest,
    DeadlineExceeded,
    InstanceLost,
    ModelNotFound,
    Unavailable,
    XpydError,
    from_wire,
)
from common.wire import AdapterDone, AdapterInfo, InstanceInfo, LoadAdapter, UnloadAdapter
from proxy.membership import Member

ANSWER_S = 300.0  # for files to be read


def served_adapters(infos: Iterable[InstanceInfo]) -> list[AdapterInfo]:
    """One per name: of several digests the one that most instances hold."""
    by_name: dict[str, list[AdapterInfo]] = {}
    for info in infos:
        for adapter in info.adapters:
            if adapter.name:  # else: unloaded, and kept for requests on their way
                by_name.setdefault(adapter.name, []).append(adapter)
    return [_chosen(found) for _, found in sorted(by_name.items())]


def adapter_cards(base: ModelCard, infos: Iterable[InstanceInfo]) -> list[ModelCard]:
    return [adapter_card(base, adapter, base.created) for adapter in served_adapters(infos)]


def _chosen(found: list[AdapterInfo]) -> AdapterInfo:
    holders = Counter(adapter.digest for adapter in found)
    return min(found, key=lambda adapter: (-holders[adapter.digest], adapter.digest))


class FleetAdapters:
    """An `AdapterDoor` (common/api/adapters.py) over all instances of the served model.

    members: by instance id, of those that are connected and serve it
    send:    says whether the message went out
    """

    def __init__(
        self,
        members: Callable[[], Mapping[str, Member]],
        send: Callable[[str, msgspec.Struct], bool],
        answer_s: float = ANSWER_S,
    ) -> None:
        self._members = members
        self._send = send
        self._answer_s = answer_s
        self._asked: dict[tuple[str, str], asyncio.Future[None]] = {}  # by instance and name

    async def load(self, name: str, path: str) -> None:
        """On every instance that has none of this name. Raises XpydError unless all have it then,
        and the same."""
        members = self._members()
        if not members:
            raise Unavailable("no instance is ready")
        if any(name == member.info.model for member in members.values()):
            raise BadRequest(f"{name} is the name of the model itself", "lora_name")
        lacking = [i for i, member in members.items() if name not in _names(member)]
        if not lacking:
            raise BadRequest(f"a LoRA adapter {name!r} is loaded; unload it first", "lora_name")
        await self._all(lacking, name, partial(LoadAdapter, name, path), "loaded")
        held = {
            adapter.digest
            for member in self._members().values()
            for adapter in member.info.adapters
            if adapter.name == name
        }
        if len(held) > 1:
            raise BadRequest(
                f"{name} is loaded, but instances found different files; unload it and make them "
                "equal",
                "lora_path",
            )

    async def unload(self, name: str) -> None:
        holding = [i for i, member in self._members().items() if name in _names(member)]
        if not holding:
            raise ModelNotFound(f"there is no LoRA adapter {name!r}", "lora_name")
        await self._all(holding, name, partial(UnloadAdapter, name), "unloaded")

    def answered(self, instance_id: str, message: AdapterDone) -> None:
        answer = self._asked.get((instance_id, message.name))
        if answer is None or answer.done():
            return
        if message.code:
            answer.set_exception(from_wire(message.code, message.message))
        else:
            answer.set_result(None)

    def lost(self, instance_id: str) -> None:
        """Nobody will answer over the link that was asked on."""
        for (asked, _), answer in self._asked.items():
            if asked == instance_id and not answer.done():
                answer.set_exception(InstanceLost("the instance was lost before it answered"))

    # --- inside ------------------------------------------------------------------------------

    async def _all(
        self,
        instance_ids: list[str],
        name: str,
        message: Callable[[], msgspec.Struct],
        what: str,
    ) -> None:
        asking: list[Awaitable[None]] = [self._ask(i, name, message()) for i in instance_ids]
        results = await asyncio.gather(*asking, return_exceptions=True)
        failed: dict[str, XpydError] = {}
        for instance_id, result in zip(instance_ids, results, strict=True):
            if isinstance(result, XpydError):
                failed[instance_id] = result
            elif result is not None:
                raise result
        if not failed:
            return
        is_one_reason = len({(error.code, error.message) for error in failed.values()}) == 1
        if is_one_reason and len(failed) == len(instance_ids):
            raise next(iter(failed.values()))
        told = "; ".join(f"{i}: {error.message}" for i, error in failed.items())
        raise Unavailable(
            f"{what} on {len(instance_ids) - len(failed)} of {len(instance_ids)} instances; {told}"
        )

    async def _ask(self, instance_id: str, name: str, message: msgspec.Struct) -> None:
        key = instance_id, name
        if key in self._asked:
            raise Unavailable(f"{name} is being loaded or unloaded already")
        answer = self._asked[key] = asyncio.get_running_loop().create_future()
        try:
            if not self._send(instance_id, message):
                raise InstanceLost("the instance does not take messages")
            await asyncio.wait_for(answer, self._answer_s)
        except asyncio.TimeoutError:
            raise DeadlineExceeded(
                f"the instance did not answer within {self._answer_s:.0f} s"
            ) from None
        finally:
            del self._asked[key]


def _names(member: Member) -> set[str]:
    return {adapter.name for adapter in member.info.adapters}
