"""Names come and go; what has begun with an adapter finds it by digest for a while."""

import asyncio

import pytest

from common.engine_client import ModelCard
from common.errors import (
    BadRequest,
    ConfigError,
    ModelNotFound,
    PermissionDenied,
    Unavailable,
)
from common.instance.adapters import AdapterLimits, NoAdapters, ServedAdapters, carry_out
from common.lora_modules import AdapterSource, parse_lora_modules
from common.model.lora.adapter import Adapter
from common.wire import AdapterDone, AdapterInfo, LoadAdapter, UnloadAdapter

BASE = ModelCard("base", 64, 5)


class Shelf:
    """Adapters of a directory of plain files, whose text is their digest; the clock by hand."""

    def __init__(self, root, max_adapters=2, linger_s=30.0):
        self.root = root
        self.now = 0.0
        self.told: list[tuple[AdapterInfo, ...]] = []
        limits = AdapterLimits(max_adapters, str(root), linger_s)
        self.served = ServedAdapters(self.read, BASE, limits, clock=lambda: self.now)
        self.served.on_change = lambda: self.told.append(self.served.infos())

    def add(self, name, digest):
        (self.root / name).mkdir()
        (self.root / name / "digest").write_text(digest)

    def read(self, directory, root):
        try:
            return Adapter((directory / "digest").read_text(), 4, {})
        except FileNotFoundError:
            raise ConfigError("the adapter has no digest") from None

    def names(self):
        return [card.name for card in self.served.cards()]


@pytest.fixture
def shelf(tmp_path):
    made = Shelf(tmp_path)
    for name, digest in (("one", "d1"), ("two", "d2"), ("three", "d3"), ("again", "d1")):
        made.add(name, digest)
    return made


def test_an_adapter_is_a_card_of_its_own(shelf):
    asyncio.run(shelf.served.load("a", "one"))
    (card,) = shelf.served.cards()
    assert (card.name, card.base, card.parent, card.root) == ("a", "base", "base", "one")
    assert (card.adapter, card.max_model_len) == ("d1", 64)
    assert shelf.served.find("d1").digest == "d1"
    assert shelf.served.name_of("d1") == "a"
    assert shelf.told == [(AdapterInfo("a", "d1", "one", "base"),)]


def test_what_is_unloaded_works_on_without_a_name_until_its_time_is_up(shelf):
    async def body():
        await shelf.served.load("a", "one")
        await shelf.served.unload("a")
        assert shelf.names() == []
        assert shelf.served.infos() == (AdapterInfo("", "d1"),)
        shelf.now = 29.0
        shelf.served.forget_retired()
        assert shelf.served.find("d1")
        shelf.now = 30.0
        shelf.served.forget_retired()
        with pytest.raises(ModelNotFound):
            shelf.served.find("d1")
        assert shelf.served.infos() == shelf.told[-1] == ()

    asyncio.run(body())


def test_a_file_that_comes_back_under_any_name_stays(shelf):
    async def body():
        await shelf.served.load("a", "one")
        first = shelf.served.find("d1")
        await shelf.served.unload("a")
        await shelf.served.load("b", "again")
        assert shelf.served.find("d1") is first  # one copy in memory
        assert shelf.served.infos() == (AdapterInfo("b", "d1", "again", "base"),)
        shelf.now = 100.0
        shelf.served.forget_retired()
        assert shelf.served.find("d1") is first
        assert shelf.served.name_of("d1") == "b"

    asyncio.run(body())


def test_two_names_of_one_file(shelf):
    async def body():
        await shelf.served.load("a", "one")
        await shelf.served.load("b", "again")
        await shelf.served.unload("b")
        assert shelf.served.name_of("d1") == "a"
        shelf.now = 100.0
        shelf.served.forget_retired()
        assert shelf.served.find("d1")

    asyncio.run(body())


@pytest.mark.parametrize(
    ("name", "path", "error"),
    [
        ("base", "one", BadRequest),
        ("a/b", "one", BadRequest),
        ("", "one", BadRequest),
        ("x" * 65, "one", BadRequest),
        ("a", "nowhere", BadRequest),
        ("a", "https://hub/one", BadRequest),
        ("a", "../one", PermissionDenied),
        ("a", "/proc/self/environ", PermissionDenied),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(name, path, error, shelf):
    with pytest.raises(error):
        asyncio.run(shelf.served.load(name, path))
    assert shelf.names() == shelf.told == []


def test_names_are_unique_and_their_number_is_limited(shelf):
    async def body():
        await shelf.served.load("a", "one")
        with pytest.raises(BadRequest, match="unload it first"):
            await shelf.served.load("a", "two")
        await shelf.served.load("b", "two")
        with pytest.raises(BadRequest, match="--max-loras"):
            await shelf.served.load("c", "three")
        await shelf.served.unload("a")
        await shelf.served.load("c", "three")
        assert shelf.names() == ["b", "c"]

    asyncio.run(body())


def test_changing_quickly_does_not_fill_the_memory(shelf):
    async def body():
        for name in ("four", "five"):
            shelf.add(name, name)
        for name in ("one", "two", "three", "four"):
            await shelf.served.load("a", name)
            await shelf.served.unload("a")
        with pytest.raises(Unavailable, match="still kept"):
            await shelf.served.load("a", "five")
        shelf.now = 31.0
        shelf.served.forget_retired()
        await shelf.served.load("a", "five")

    asyncio.run(body())


def test_loads_at_once_keep_to_the_limit(shelf):
    async def body():
        wishes = [shelf.served.load(f"n{i}", "one") for i in range(6)]
        results = await asyncio.gather(*wishes, return_exceptions=True)
        assert [type(result) for result in results].count(BadRequest) == 4
        assert len(shelf.names()) == 2

    asyncio.run(body())


def test_without_a_root_nothing_is_loaded_while_serving(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "digest").write_text("d")
    shelf = Shelf(tmp_path)
    served = ServedAdapters(shelf.read, BASE, AdapterLimits(2, "", 1.0))
    served.load_now(AdapterSource("x", str(tmp_path / "x"), "org/parent"))
    assert served.infos() == (AdapterInfo("x", "d", str(tmp_path / "x"), "org/parent"),)
    with pytest.raises(BadRequest, match="--lora-root"):
        asyncio.run(served.load("y", "x"))
    with pytest.raises(ConfigError, match="z: the adapter has no digest"):
        served.load_now(AdapterSource("z", str(tmp_path / "nowhere")))


def test_a_proxy_is_told_what_came_of_its_wish(shelf):
    async def body():
        load, unload = LoadAdapter("a", "one"), UnloadAdapter("a")
        assert await carry_out(shelf.served, load) == AdapterDone("a")
        assert (await carry_out(shelf.served, load)).code == "invalid_value"
        assert await carry_out(shelf.served, unload) == AdapterDone("a")
        assert (await carry_out(shelf.served, unload)).code == "model_not_found"
        assert "--enable-lora" in (await carry_out(NoAdapters(), load)).message
        assert (await carry_out(NoAdapters(), unload)).code == "model_not_found"

    asyncio.run(body())


def test_the_flag_takes_both_forms():
    assert parse_lora_modules(
        ("a=/p=1", '{"name": "b", "path": "/q", "base_model_name": "org/m"}')
    ) == (AdapterSource("a", "/p=1"), AdapterSource("b", "/q", "org/m"))


@pytest.mark.parametrize(
    "values",
    [
        ("a",),
        ("a=",),
        ("=/p",),
        ("a b=/p",),
        ("a=/p", "a=/q"),
        ("{",),
        ('{"name": "a"}',),
        ('{"name": 1, "path": "/p"}',),
        ('{"name": "a", "path": "/p", "is_3d": "x"}',),
    ],
)
def test_a_flag_that_is_no_list_of_adapters_is_refused(values):
    with pytest.raises(ConfigError, match="--lora-modules"):
        parse_lora_modules(values)
