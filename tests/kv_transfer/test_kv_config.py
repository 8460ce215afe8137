"""The settings: what vLLM users write is understood, what nobody understands is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from common.errors import ConfigError
from kv_transfer import connector
from kv_transfer.config import KVTransferConfig
from kv_transfer.connector import make_transport
from kv_transfer.transport.memory import MemoryTransport
from kv_transfer.transport.shm import ShmTransport
from tests.kv_transfer.ends import NEEDS_NIXL, Pool, identity


def parse(**raw):
    return KVTransferConfig.parse(json.dumps(raw))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("NixlConnector", "nixl"), ("nixl", "nixl"), ("shm", "shm"), ("mine", "mine")],
)
def test_connector_names(name, expected):
    assert parse(kv_connector=name).connector == expected


def test_what_a_vllm_user_writes():
    config = parse(
        kv_connector="NixlConnector",
        kv_role="kv_consumer",
        kv_buffer_device="cpu",
        kv_connector_extra_config={"kv_lease_duration": 30, "backends": ["UCX", "LIBFABRIC"]},
    )
    assert config == KVTransferConfig(
        "nixl", "kv_consumer", 30.0, device="cpu", backends=("UCX", "LIBFABRIC")
    )


def test_storage_needs_a_directory():
    extra = {"shared_storage_path": "/data/kv"}
    config = parse(kv_connector="SharedStorageConnector", kv_connector_extra_config=extra)
    assert (config.connector, config.storage_dir) == ("shared_storage", "/data/kv")
    with pytest.raises(ConfigError, match="directory"):
        parse(kv_connector="shared_storage")


def test_a_third_party_gets_its_settings_untouched():
    config = parse(kv_connector="mine", kv_connector_extra_config={"anything": [1]})
    assert config.extra == {"anything": [1]}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "valid JSON"),
        ("[1]", "JSON object"),
        ("[" * 100_000, "valid JSON"),
        ("{}", "kv_connector"),
        ('{"kv_connector": 5}', "kv_connector"),
        ('{"kv_connector": ""}', "kv_connector"),
        ('{"kv_connector": "shm", "kv_port": 14579}', "kv_port"),
        ('{"kv_connector": "shm", "kv_role": "boss"}', "kv_role"),
        ('{"kv_connector": "shm", "kv_role": ["kv_both"]}', "kv_role"),
        ('{"kv_connector": "shm", "kv_buffer_device": "tpu"}', "kv_buffer_device"),
        ('{"kv_connector": "shm", "kv_connector_extra_config": 3}', "extra_config"),
        ('{"kv_connector": "shm", "kv_connector_extra_config": {"backends": []}}', "backends"),
        ('{"kv_connector": "nixl", "kv_connector_extra_config": {"backends": []}}', "backends"),
        ('{"kv_connector": "nixl", "kv_connector_extra_config": {"backends": [1]}}', "backends"),
        (
            '{"kv_connector": "nixl", "kv_connector_extra_config": {"num_threads": 4}}',
            "num_threads",
        ),
        ('{"kv_connector": "shm", "kv_connector_extra_config": {"kv_lease_duration": 0}}', "lease"),
        (
            '{"kv_connector": "shm", "kv_connector_extra_config": {"kv_lease_duration": true}}',
            "lease",
        ),
        (
            '{"kv_connector": "shm", "kv_connector_extra_config": {"kv_lease_duration": NaN}}',
            "lease",
        ),
        ('{"kv_connector": "shm", "kv_connector_extra_config": {"checksum": 1}}', "checksum"),
        (
            '{"kv_connector": "shared_storage", "kv_connector_extra_config": '
            '{"shared_storage_path": "/x", "shared_storage_max_bytes": "lots"}}',
            "64GiB",
        ),
        (
            '{"kv_connector": "shared_storage", '
            '"kv_connector_extra_config": {"shared_storage_path": 7}}',
            "shared_storage_path",
        ),
    ],
)
def test_what_is_wrong_is_named(text, named):
    with pytest.raises(ConfigError, match=named):
        KVTransferConfig.parse(text)


@pytest.mark.parametrize(("asked", "expected"), [({}, False), ({"checksum": True}, True)])
def test_checksums_can_be_asked_for(asked, expected, pool):
    config = parse(kv_connector="shm", kv_connector_extra_config=asked)
    assert make_transport(config, pool.region, identity("p")).checksums is expected


@pytest.fixture
def pool():
    made = Pool()
    yield made
    made.close()


def test_transports_by_name(pool):
    assert isinstance(
        make_transport(KVTransferConfig("shm"), pool.region, identity("p")), ShmTransport
    )
    with pytest.raises(ConfigError, match="unknown connector 'carrier-pigeon'"):
        make_transport(KVTransferConfig("carrier-pigeon"), pool.region, identity("p"))


class Point:
    def __init__(self, made):
        self._made = made

    def load(self):
        return lambda config, region, info: self._made


def test_a_third_party_brings_its_own(pool, monkeypatch):
    mine = MemoryTransport(pool.region)
    points = {"mine": [Point(mine)], "broken": [Point(object())]}
    monkeypatch.setattr(connector, "entry_points", lambda group, name: points[name])
    assert make_transport(KVTransferConfig("mine"), pool.region, identity("p")) is mine
    with pytest.raises(ConfigError, match="makes no Transport"):
        make_transport(KVTransferConfig("broken"), pool.region, identity("p"))


def test_nixl_missing_is_one_clear_line(pool, monkeypatch):
    monkeypatch.setattr("kv_transfer.transport.nixl.PACKAGES", ("no_such_nixl",))
    with pytest.raises(ConfigError, match="pip install"):
        make_transport(KVTransferConfig("nixl"), pool.region, identity("p"))


@pytest.mark.parametrize("connector", ["shm", "nixl", "nccl"])
def test_a_pool_elsewhere_than_asked_for_is_refused(pool, connector):
    with pytest.raises(ConfigError, match="kv_buffer_device is cuda, but the KV pool is on cpu"):
        make_transport(KVTransferConfig(connector, device="cuda"), pool.region, identity("p"))


@pytest.mark.parametrize("connector", ["shm", "memory", "shared_storage"])
def test_a_pool_on_a_gpu_needs_another_connector(pool, connector):
    on_gpu = replace(pool.region, device=0)
    config = KVTransferConfig(connector, storage_dir="/nowhere")
    with pytest.raises(ConfigError, match="on a GPU use nixl or nccl"):
        make_transport(config, on_gpu, identity("p"))
    with pytest.raises(ConfigError, match="checksums"):
        make_transport(KVTransferConfig("nixl", checksum=True), on_gpu, identity("p"))


def test_a_limit_may_be_written_as_people_do():
    extra = {"shared_storage_path": "/data/kv", "shared_storage_max_bytes": "2GiB"}
    config = parse(kv_connector="shared_storage", kv_connector_extra_config=extra)
    assert config.storage_max_bytes == 2 << 30


@NEEDS_NIXL
def test_a_nixl_backend_that_is_not_there_is_one_clear_line(pool):
    config = KVTransferConfig("nixl", backends=("NO_SUCH_BACKEND",))
    with pytest.raises(ConfigError, match="connector nixl cannot start"):
        make_transport(config, pool.region, identity("p"))
