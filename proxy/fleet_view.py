"""The frozen picture of the fleet that policies choose from.

An instance's `Load` is up to half a second old and does not know what has come and gone since; our
own books know nothing of other proxies. So of queued tokens the view adds what others had there to
what is ours, and of the rest it takes whichever is larger.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from common.wire import Load
from proxy.membership import Member, Membership, State
from proxy.policy import InstanceView, Snapshot


@dataclass(slots=True)
class _Account:
    """What we have put on one instance."""

    num_requests: int = 0  # now
    queued_tokens: int = 0  # to compute, of prompts sent to it that have no first token yet
    waiting_tokens: int = 0  # the same and what is cached of them: so its `Load` counts
    load: Load | None = None  # the report that the next three belong to
    waiting_then: int = 0  # `waiting_tokens` when it came
    requests_since: int = 0
    tokens_since: int = 0


@dataclass(slots=True)
class Accounts:
    """Which requests of ours are where. Kept by the relay, read by `view_fleet`."""

    computed_tokens: int = 0  # of prompts that have left a prefill queue with their first token
    _accounts: dict[str, _Account] = field(default_factory=dict)
    _assigned: dict[int, tuple[tuple[str, ...], str | None, int, int]] = field(default_factory=dict)

    def assign(
        self,
        key: int,
        instances: tuple[str, ...],
        queued_at: str | None,
        num_tokens: int,
        num_cached: int = 0,
    ) -> None:
        """Request `key` is at `instances` now (nowhere: it ended); its prompt waits at one, which
        has `num_cached` tokens of it in its prefix cache."""
        before, was_queued_at, had_tokens, had_cached = self._assigned.pop(key, ((), None, 0, 0))
        for instance in before:
            self._account(instance).num_requests -= 1
        if was_queued_at is not None:
            self._account(was_queued_at).queued_tokens -= had_tokens - had_cached
            self._account(was_queued_at).waiting_tokens -= had_tokens
            if queued_at is None and instances:
                self.computed_tokens += had_tokens - had_cached
        for instance in instances:
            account = self._account(instance)
            account.num_requests += 1
            if instance not in before:
                account.requests_since += 1
                account.tokens_since += num_tokens
        if queued_at is not None:
            self._account(queued_at).queued_tokens += num_tokens - num_cached
            self._account(queued_at).waiting_tokens += num_tokens
        if instances:
            self._assigned[key] = (instances, queued_at, num_tokens, num_cached)

    def num_requests(self, instance_id: str) -> int:
        account = self._accounts.get(instance_id)
        return account.num_requests if account else 0

    def reported(self, member: Member) -> None:
        """Call before anything changes on the instance: what is ours there now, was when its
        last report came."""
        account = self._account(member.info.instance_id)
        if account.load is not member.load:
            account.load, account.requests_since, account.tokens_since = member.load, 0, 0
            account.waiting_then = account.waiting_tokens

    def view(self, member: Member) -> InstanceView:
        info, load = member.info, member.load
        self.reported(member)
        account = self._account(info.instance_id)
        num_running = load.num_running + load.num_waiting if load else 0
        queued_tokens = load.num_waiting_tokens if load else 0
        taken = account.tokens_since // max(1, info.block_size) + account.requests_since
        return InstanceView(
            instance_id=info.instance_id,
            role=info.role,
            model=info.model,
            kv_fingerprint=info.kv_fingerprint,
            kv_connector=info.kv_connector,
            max_model_len=info.max_model_len,
            block_size=info.block_size,
            is_suspect=member.state is not State.READY,
            queued_tokens=account.queued_tokens + max(0, queued_tokens - account.waiting_then),
            num_requests=max(account.num_requests, num_running + account.requests_since),
            free_blocks=max(0, (load.free_blocks if load else info.num_blocks) - taken),
            total_blocks=info.num_blocks,
            num_ours=account.num_requests,
            max_num_seqs=info.max_num_seqs,
        )

    def forget(self, membership: Membership) -> None:
        """Drop the books of instances that are gone and have no request left."""
        for instance in [i for i in self._accounts if i not in membership.members]:
            if not self._accounts[instance].num_requests:
                del self._accounts[instance]

    def _account(self, instance_id: str) -> _Account:
        return self._accounts.setdefault(instance_id, _Account())


def view_fleet(
    membership: Membership,
    accounts: Accounts,
    model: str,
    kv_fingerprint: str = "",
    adapter: str = "",
) -> Snapshot:
    """Everybody who can be sent a request; only one kind of KV if `kv_fingerprint` is given, and
    only who holds the adapter of this digest if `adapter` is."""
    usable = [
        member
        for _, member in sorted(membership.members.items())
        if member.is_connected
        and not member.is_draining
        and kv_fingerprint in ("", member.info.kv_fingerprint)
        and (not adapter or any(each.digest == adapter for each in member.info.adapters))
    ]
    return Snapshot(model, tuple(accounts.view(member) for member in usable))
