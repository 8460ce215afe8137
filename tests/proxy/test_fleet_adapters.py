"""Adapters over several instances: what is served, who is asked, what is told of failures."""

import asyncio

import pytest

from common.engine_client import ModelCard
from common.errors import BadRequest, DeadlineExceeded, InstanceLost, ModelNotFound, Unavailable
from common.wire import AdapterDone, AdapterInfo, AdaptersChanged, InstanceInfo, Load
from proxy.adapters import FleetAdapters, adapter_cards, served_adapters
from proxy.fleet_view import Accounts, view_fleet
from proxy.membership import Membership

BASE = ModelCard("m", 64, 5)


def info(instance_id, role="both", adapters=()):
    return InstanceInfo(
        instance_id=instance_id,
        incarnation="1",
        role=role,
        url=f"http://{instance_id}:1",
        endpoint=f"tcp://{instance_id}:9",
        side_channel="",
        model="m",
        model_path="",
        max_model_len=64,
        kv_fingerprint="f",
        kv_connector="",
        num_blocks=8,
        block_size=4,
        adapters=tuple(AdapterInfo(name, digest) for name, digest in adapters),
    )


class Instances:
    """A membership whose instances answer as they are told; None: never."""

    def __init__(self, **instances):
        self.membership = Membership()
        self.answers = {}
        self.asked = []
        for name, adapters in instances.items():
            made = info(name, adapters=adapters)
            self.membership.found(made, "registry", 0.0)
            self.membership.welcome(name, made, 0.0)
        self.fleet = FleetAdapters(self.members, self.send, answer_s=0.3)

    def members(self):
        return dict(self.membership.members)

    def changed(self, name, *adapters, incarnation="1"):
        served = tuple(AdapterInfo(*each) for each in adapters)
        self.membership.adapters_changed(name, AdaptersChanged(incarnation, served))

    def send(self, instance_id, message):
        self.asked.append((instance_id, type(message).__name__, message.name))
        answer = self.answers.get(instance_id, "d1")
        if answer is False:
            return False
        if answer is None:
            return True
        if isinstance(answer, AdapterDone):
            done = answer
        else:
            done = AdapterDone(message.name)
            is_load = type(message).__name__ == "LoadAdapter"
            self.changed(instance_id, *([(message.name, answer)] if is_load else []))
        asyncio.get_running_loop().call_soon(self.fleet.answered, instance_id, done)
        return True

    def names(self):
        infos = [member.info for member in self.members().values()]
        return [card.name for card in adapter_cards(BASE, infos)]


NO_FILE = AdapterDone("a", "invalid_value", "no such directory")


def test_every_instance_that_lacks_it_is_asked():
    async def body():
        made = Instances(p=(), d=(("a", "d1"),))
        await made.fleet.load("a", "x")
        assert made.asked == [("p", "LoadAdapter", "a")]
        with pytest.raises(BadRequest, match="unload it first"):
            await made.fleet.load("a", "x")
        with pytest.raises(BadRequest, match="the model itself"):
            await made.fleet.load("m", "x")
        await made.fleet.unload("a")
        assert made.names() == []
        with pytest.raises(ModelNotFound):
            await made.fleet.unload("a")

    asyncio.run(body())


def test_one_reason_everywhere_is_the_answer():
    async def body():
        made = Instances(p=(), d=())
        made.answers = {"p": NO_FILE, "d": NO_FILE}
        with pytest.raises(BadRequest, match="^no such directory$"):
            await made.fleet.load("a", "x")

    asyncio.run(body())


@pytest.mark.parametrize("failure", [NO_FILE, None, False])
def test_a_failure_in_part_is_told_and_can_be_mended(failure):
    async def body():
        made = Instances(p=(), d=())
        made.answers["d"] = failure
        with pytest.raises(Unavailable, match="loaded on 1 of 2 instances; d: "):
            await made.fleet.load("a", "x")
        assert made.names() == ["a"]
        del made.answers["d"]
        made.asked.clear()
        await made.fleet.load("a", "x")
        assert [instance for instance, _, _ in made.asked] == ["d"]

    asyncio.run(body())


def test_different_files_under_one_name_are_told():
    async def body():
        made = Instances(p=(), d=())
        made.answers = {"p": "d1", "d": "d2"}
        with pytest.raises(BadRequest, match="different files"):
            await made.fleet.load("a", "x")

    asyncio.run(body())


def test_nobody_there_silence_and_loss():
    async def body():
        with pytest.raises(Unavailable):
            await Instances().fleet.load("a", "x")
        made = Instances(p=())
        made.answers["p"] = None
        with pytest.raises(DeadlineExceeded):
            await made.fleet.load("a", "x")
        asking = asyncio.create_task(made.fleet.load("a", "x"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="already"):
            await made.fleet.load("a", "x")
        made.fleet.lost("p")
        with pytest.raises(InstanceLost):
            await asking
        made.fleet.answered("p", AdapterDone("a"))  # too late: nobody waits

    asyncio.run(body())


def test_a_name_stands_for_the_file_that_most_hold():
    infos = [
        info("x", adapters=[("a", "d9"), ("b", "d1")]),
        info("y", adapters=[("a", "d9")]),
        info("z", adapters=[("a", "d1"), ("", "d7")]),
    ]
    found = {adapter.name: adapter.digest for adapter in served_adapters(infos)}
    assert found == {"a": "d9", "b": "d1"}
    tied = [info("x", adapters=[("a", "d2")]), info("y", adapters=[("a", "d1")])]
    assert [adapter.digest for adapter in served_adapters(tied)] == ["d1"]


def test_only_who_holds_the_digest_is_chosen_from():
    made = Instances(p=(("a", "d1"),), d=(("a", "d2"),), both=(("", "d1"),))
    for name in made.members():
        made.membership.loaded(name, Load("1", 0, 0, 0, 8, 8), 0.0)

    def seen(adapter):
        snapshot = view_fleet(made.membership, Accounts(), "m", adapter=adapter)
        return [view.instance_id for view in snapshot.instances]

    assert seen("") == ["both", "d", "p"]
    assert seen("d1") == ["both", "p"]  # one has been told to let go of it, and has not yet
    assert seen("d3") == []


def test_news_of_another_incarnation_or_of_too_much_are_not_believed():
    made = Instances(p=(("a", "d1"),))
    made.changed("p", ("b", "d1"), incarnation="2")
    made.changed("nobody", ("b", "d1"))
    made.changed("p", ("x" * 5000, "d1"))
    made.changed("p", *(("b", "d1") for _ in range(5000)))
    assert made.names() == ["a"]
