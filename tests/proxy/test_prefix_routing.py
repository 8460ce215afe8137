"""Routing by prefix over stand-ins with prefix caches: the same prompts go where they have been."""

from __future__ import annotations

import asyncio

from benchmarks.standin_instance import Standin
from common.wire import Prefixes, RunPrefill
from tests.proxy.fleet_of_standins import (
    answer,
    collect,
    make_request,
    num_ready,
    running_fleet,
    until,
)

BLOCKS = 64
FLEET = [
    *(Standin("prefill", f"p{i}", max_cached_blocks=BLOCKS) for i in range(2)),
    Standin("decode", "d0"),
]


def prompts(num_groups=9, each=6, shared=256, own=8):
    """Round after round over the groups."""
    for turn in range(each):
        for group in range(num_groups):
            prefix = [group + 1] * shared
            yield (*prefix, *range(turn * 50, turn * 50 + own))


def computed(instances):
    return sum(i.prefixes.num_computed_tokens for i in instances if i.config.role == "prefill")


async def tokens_computed(policy):
    async with running_fleet(*FLEET, prefill_policy=policy) as (fleet, instances):
        if policy == "prefix_aware":
            await until(lambda: fleet.prefixes.num_followed == 3)
        for prompt in prompts():
            assert await collect(fleet, make_request(3, prompt)) == answer(3, prompt)
        return computed(instances)


def test_shared_prefixes_are_computed_once():
    """Nine prefixes of eight blocks fit into two caches, not into one."""
    aware, blind = (
        asyncio.run(tokens_computed("prefix_aware")),
        asyncio.run(tokens_computed("round_robin")),
    )
    assert aware <= 9 * 256 + 54 * 40
    assert aware <= 0.5 * blind


def test_what_was_just_routed_counts_already():
    """Queues: 256 tokens here, 96 there. Only who knows that the 256 will be shared stays here."""

    async def body():
        slow = [Standin("prefill", f"p{i}", prefill_s=0.5, max_cached_blocks=64) for i in (0, 1)]
        fleet_of = [*slow, Standin("decode", "d0")]
        async with running_fleet(*fleet_of, prefill_policy="prefix_aware") as (fleet, instances):
            await until(lambda: fleet.prefixes.num_followed == 3)
            running = []
            for prompt in (range(256), [7] * 96, range(257)):
                running.append(asyncio.create_task(collect(fleet, make_request(2, prompt))))
                await asyncio.sleep(0.05)
            await asyncio.gather(*running)
            lengths = [
                [len(m.request.prompt_token_ids) for m in i.seen if isinstance(m, RunPrefill)]
                for i in instances[:2]
            ]
            assert sorted(lengths) == [[96], [256, 257]]

    asyncio.run(body())


def test_a_lost_message_and_a_restart_are_noticed():
    async def body():
        async with running_fleet(*FLEET, prefill_policy="prefix_aware") as (fleet, instances):
            follower = fleet.prefixes
            await until(lambda: follower.num_followed == 3)
            await collect(fleet, make_request(2, range(96)))
            await until(lambda: follower.index.num_blocks == 3)
            resets = follower.num_resets
            prefill = next(i for i in instances if i.prefixes.num_computed_tokens)
            for peer in prefill.prefixes.watchers:
                prefill.prefixes.watchers[peer] += 1  # as if one had been lost
            prefill.prefixes.tell(prefill._listener.send, prefill.info.incarnation, Prefixes("", 0))
            await until(lambda: follower.num_resets == resets + 1)
            await prefill.close()
            await until(lambda: num_ready(fleet) == 2)
            assert prefill.info.instance_id not in follower.index.known()

    asyncio.run(body())
