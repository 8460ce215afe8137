"""The frozen picture of the fleet that policies choose from.

An instance's `Load` is up to half a second old and does not know what we have sent since; our own
books know nothing of other proxies. So the view takes whichever is larger.
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
    cached_tokens: int = 0  # of the same prompts, in its prefix cache: its `Load` counts them, too
    load: Load | None = None  # the report that the next two count from
    requests_since: int = 0
    tokens_since: int = 0


@dataclass(slots=True)
class Accounts:
    """Which requests of ours are where. Kept by the relay, read by `view_fleet`."""

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
            self._account(was_queued_at).cached_tokens -= had_cached
        for instance in instances:
            account = self._account(instance)
            account.num_requests += 1
            if instance not in before:
                account.requests_since += 1
                account.tokens_since += num_tokens
        if queued_at is not None:
            self._account(queued_at).queued_tokens += num_tokens - num_cached
            self._account(queued_at).cached_tokens += num_cached
        if instances:
            self._assigned[key] = (instances, queued_at, num_tokens, num_cached)

    def num_requests(self, instance_id: str) -> int:
        account = self._accounts.get(instance_id)
        return account.num_requests if account else 0

    def view(self, member: Member) -> InstanceView:
        info, load = member.info, member.load
        account = self._account(info.instance_id)
        if account.load is not load:
            account.load, account.requests_since, account.tokens_since = load, 0, 0
        num_running = load.num_running + load.num_waiting if load else 0
        queued_tokens = load.num_waiting_tokens if load else 0
        taken = account.tokens_since // max(1, info.block_size) + account.requests_since
        is_prefill = info.role == "prefill"
        return InstanceView(
            instance_id=info.instance_id,
            role=info.role,
            model=info.model,
            kv_fingerprint=info.kv_fingerprint,
            kv_connector=info.kv_connector,
            max_model_len=info.max_model_len,
            block_size=info.block_size,
            is_suspect=member.state is not State.READY,
            queued_tokens=max(
                account.queued_tokens,
                queued_tokens + (account.tokens_since if is_prefill else 0) - account.cached_tokens,
            ),
            num_requests=max(account.num_requests, num_running + account.requests_since),
            free_blocks=max(0, (load.free_blocks if load else info.num_blocks) - taken),
            total_blocks=info.num_blocks,
        )

    def forget(self, membership: Membership) -> None:
        """Drop the books of instances that are gone and have no request left."""
        for instance in [i for i in self._accounts if i not in membership.members]:
            if not self._accounts[instance].num_requests:
                del self._accounts[instance]

    def _account(self, instance_id: str) -> _Account:
        return self._accounts.setdefault(instance_id, _Account())


def view_fleet(
    membership: Membership, accounts: Accounts, model: str, kv_fingerprint: str = ""
) -> Snapshot:
    """Everybody who can be sent a request; only one kind of KV if `kv_fingerprint` is given."""
    usable = [
        member
        for _, member in sorted(membership.members.items())
        if member.is_connected
        and not member.is_draining
        and kv_fingerprint in ("", member.info.kv_fingerprint)
    ]
    return Snapshot(model, tuple(accounts.view(member) for member in usable))
