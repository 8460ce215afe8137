import json
import stat

import pytest

from common.config import UpConfig
from common.errors import ConfigError
from scripts.topology import describe, plan_topology, share_cores, write_topology


def plan(config, extra=(), cores=(0, 1), gpus=0, busy=()):
    return plan_topology(
        config, extra, cores=cores, gpus=gpus, is_free=lambda host, port: port not in busy
    )


def flag(argv, name):
    return argv[argv.index(name) + 1]


def test_one_of_each_on_two_cores_gets_a_core_each():
    made = plan(UpConfig())
    assert [p.name for p in made.processes] == ["proxy", "prefill-0", "decode-0"]
    assert [flag(p.argv, "--cpu-cores") for p in made.instances] == ["0", "1"]
    assert [flag(p.argv, "--role") for p in made.instances] == ["prefill", "decode"]
    assert flag(made.proxy.argv, "--registry-port") == "30001"
    assert all(flag(p.argv, "--registry") == "127.0.0.1:30001" for p in made.instances)


def test_default_ports_skip_busy_ones_and_never_repeat():
    made = plan(UpConfig(prefill=2, decode=2), busy={8100, 8201, 30001})
    assert [p.url.rpartition(":")[2] for p in made.instances] == ["8101", "8102", "8200", "8202"]
    assert made.registry == "tcp://127.0.0.1:30002"


def test_a_named_port_in_use_is_refused():
    with pytest.raises(ConfigError, match="--port: port 8000 is in use"):
        plan(UpConfig(), busy={8000})
    with pytest.raises(ConfigError, match="--prefill-ports"):
        plan(UpConfig(prefill_ports="8100"), busy={8100})
    with pytest.raises(ConfigError, match="--decode-ports: 2 ports needed, got 1"):
        plan(UpConfig(decode=2, decode_ports="9000"))


def test_links_that_can_be_broken_lead_over_addresses_of_their_own():
    made = plan(UpConfig(prefill=1, decode=2, breakable_links=True), busy={30002})
    assert made.links is not None
    hosts = [flag(p.argv, "--advertise-host") for p in made.instances]
    assert hosts == list(made.links.hosts.values()) == [f"127.0.0.{n}" for n in (11, 12, 13)]
    assert made.registry == "tcp://127.0.0.1:30001"
    assert made.links.registry_port == 30003, "what instances are told is the relay's"
    assert all(flag(p.argv, "--registry") == "127.0.0.1:30003" for p in made.instances)
    assert flag(made.proxy.argv, "--registry-port") == "30001"
    with pytest.raises(ConfigError, match="--advertise-host"):
        plan(UpConfig(breakable_links=True), extra=["--advertise-host", "10.0.0.1"])
    pids = {process.name: 1 for process in made.processes}
    assert describe(made, pids, [], "/c")["links"] == {"control": "/c"}
    assert describe(made, pids, [])["links"] is None
    assert plan(UpConfig()).links is None


def test_named_gpus_are_dealt_out_per_role():
    made = plan(UpConfig(prefill=2, decode=1, prefill_gpus="4,5", decode_gpus="6"), gpus=8)
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in made.instances] == ["4", "5", "6"]


def test_an_instance_of_several_ranks_gets_as_many_gpus():
    config = UpConfig(prefill=2, decode=1, prefill_tensor_parallel_size=2, decode_gpus="7")
    made = plan(config, gpus=8)
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in made.instances] == ["0,1", "2,3", "7"]
    for process, sizes in zip(made.instances, (["2"], ["2"], []), strict=True):
        named = [i for i, part in enumerate(process.argv) if part == "--tensor-parallel-size"]
        assert [process.argv[i + 1] for i in named] == sizes
    with pytest.raises(ConfigError, match="--prefill-tensor-parallel-size 2.*--prefill-gpus"):
        plan(UpConfig(prefill_tensor_parallel_size=2, prefill_gpus="4"), gpus=8)


def test_ranks_take_turns_where_there_are_too_few_cores():
    made = plan(UpConfig(decode_tensor_parallel_size=2), cores=(0, 1))
    assert not any("--cpu-cores" in process.argv for process in made.instances)
    made = plan(UpConfig(decode_tensor_parallel_size=2), cores=(0, 1, 2, 3))
    cores = [process.argv[process.argv.index("--cpu-cores") + 1] for process in made.instances]
    assert cores == ["0,1", "2,3"]


def test_without_a_list_gpus_are_used_in_turn():
    made = plan(UpConfig(prefill=1, decode=2), gpus=2)
    assert [p.env["CUDA_VISIBLE_DEVICES"] for p in made.instances] == ["0", "1", "0"]


def test_own_core_lists_are_left_alone():
    made = plan(UpConfig(), extra=["--cpu-cores", "0-1"])
    assert [p.argv.count("--cpu-cores") for p in made.instances] == [1, 1]


@pytest.mark.parametrize(
    ("cores", "instances", "expected"),
    [
        ([0, 1], 2, [[0], [1]]),
        ([0, 1], 4, [[0], [1], [0], [1]]),
        ([0, 1, 2, 3, 4], 2, [[0, 1], [2, 3, 4]]),
        ([3], 1, [[3]]),
    ],
)
def test_cores_are_shared_out(cores, instances, expected):
    assert share_cores(cores, instances) == expected


def test_keys_travel_in_the_environment_not_in_argv():
    made = plan(UpConfig(api_key=("secret",)))
    assert all(p.env["XPYD_API_KEY"] == "secret" for p in made.processes)
    assert not any("secret" in part for p in made.processes for part in p.argv)


def test_the_cluster_key_travels_in_the_environment_not_in_argv():
    made = plan_topology(
        UpConfig(), (), cores=(0,), gpus=0, is_free=lambda *_: True, cluster_key="shared"
    )
    assert all(p.env["XPYD_CLUSTER_KEY"] == "shared" for p in made.processes)
    assert not any("shared" in part for p in made.processes for part in p.argv)


def test_only_the_proxy_is_told_about_the_open_door():
    config = UpConfig(
        ssl_certfile="c.pem", allowed_origins=("https://a",), allow_open_http=True, api_key_file="k"
    )
    made = plan(config)
    assert made.proxy.url.startswith("https://")
    assert flag(made.proxy.argv, "--ssl-certfile") == "c.pem"
    assert flag(made.proxy.argv, "--allowed-origins") == "https://a"
    assert "--allow-open-http" in made.proxy.argv
    for process in made.instances:
        assert process.url.startswith("http://127.0.0.1")
        assert not {"--ssl-certfile", "--allow-open-http"} & set(process.argv)
        assert flag(process.argv, "--api-key-file").startswith("/")


def test_the_description_has_the_fields_of_the_contract(tmp_path):
    made = plan(UpConfig(prefill=1, decode=2, connector="shared_storage"))
    pids = {p.name: 100 + i for i, p in enumerate(made.processes)}
    path = tmp_path / "run" / "topology.json"
    write_topology(path, describe(made, pids, ["tcp://127.0.0.1:5600"]))
    found = json.loads(path.read_text())
    assert found["proxy"]["url"] == "http://127.0.0.1:8000"
    assert found["proxy"]["pid"] == 100
    assert [row["pid"] for row in found["decode"]] == [102, 103]
    assert set(found["prefill"][0]) == {"url", "pid", "start", "env", "cwd", "log"}
    assert found["registry"] == {"endpoint": "tcp://127.0.0.1:30001"}
    assert found["side_channels"] == ["tcp://127.0.0.1:5600"]
    assert found["storage"]["dir"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
