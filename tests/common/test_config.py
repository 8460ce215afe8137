import argparse

import pytest

from common.config import ProxyConfig, ServeConfig, UpConfig
from common.errors import ConfigError
from common.options import add_options, from_args, parse_address, parse_bytes, parse_cores


def parsed(cls, *argv, env=None):
    parser = argparse.ArgumentParser()
    add_options(parser, cls)
    return from_args(cls, parser.parse_args(argv), env or {})


def test_defaults_are_those_of_the_contract():
    config = parsed(ServeConfig, "m")
    assert (config.role, config.host, config.port) == ("both", "127.0.0.1", 8100)
    assert parsed(ProxyConfig).registry_port == 30001
    assert parsed(UpConfig).port == 8000


def test_flags_override_the_environment_which_overrides_defaults():
    env = {"PROXY_PORT": "9000", "MODEL": "there", "TIMEOUT_SECONDS": "5"}
    config = parsed(UpConfig, "--model", "here", env=env)
    assert (config.model, config.port, config.timeout_seconds) == ("here", 9000, 5.0)


def test_keys_from_the_environment_are_a_list():
    assert parsed(ServeConfig, "m", env={"XPYD_API_KEY": "a,b"}).api_key == ("a", "b")


def test_a_bad_environment_value_names_the_variable():
    with pytest.raises(ConfigError, match="PROXY_PORT"):
        parsed(UpConfig, env={"PROXY_PORT": "many"})


def test_booleans_have_a_negative_form():
    assert parsed(ServeConfig, "m").enable_prefix_caching
    assert not parsed(ServeConfig, "m", "--no-enable-prefix-caching").enable_prefix_caching


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--port", "70000"], "--port"),
        (["--max-num-seqs", "0"], "--max-num-seqs"),
        (["--kv-cache-memory", "0"], "--kv-cache-memory"),
        (["--tensor-parallel-size", "0"], "--tensor-parallel-size"),
        (["--tensor-parallel-size", "2", "--quantization", "int8"], "--quantization"),
        (["--gpu-memory-utilization", "1.5"], "--gpu-memory-utilization"),
        (["--registry", "nowhere"], "--registry"),
        (["--cpu-cores", "a-b"], "--cpu-cores"),
    ],
)
def test_a_bad_value_is_refused_by_name(argv, named):
    with pytest.raises(ConfigError, match=named):
        parsed(ServeConfig, "m", *argv)


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed(ServeConfig, "m", "--kv-conector", "shm")
    assert "--kv-conector" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0,)), ("0-3,8", (0, 1, 2, 3, 8)), ("2,2", (2,)), ("", ())],
)
def test_core_lists(text, expected):
    assert parse_cores(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1000", 1000), ("512MiB", 512 << 20), ("4g", 4 << 30), ("1.5GiB", 3 << 29), ("2KB", 2048)],
)
def test_sizes(text, expected):
    assert parse_bytes(text) == expected


def test_addresses():
    assert parse_address("--x", "host:80") == ("host", 80)
    assert parse_address("--x", "[::1]:80") == ("::1", 80)
    for bad in ("host", ":80", "host:0", "host:99999", "host:x"):
        with pytest.raises(ConfigError, match="--x"):
            parse_address("--x", bad)


def test_pooling_is_asked_for_in_old_words_and_in_new():
    assert parsed(ServeConfig, "m").wanted_runner == "auto"
    for argv in (["--runner", "pooling"], ["--task", "embed"], ["--task", "score"]):
        assert parsed(ServeConfig, "m", *argv).wanted_runner == "pooling"
    assert parsed(ServeConfig, "m", "--task", "generate").wanted_runner == "generate"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--task", "embed", "--runner", "generate"], "exclude each other"),
        (["--task", "embed", "--role", "prefill"], "--role both"),
        (["--runner", "pooling", "--enable-lora"], "--enable-lora does not go"),
        (["--runner", "pooling", "--quantization", "int8"], "--quantization does not go"),
    ],
)
def test_what_does_not_go_with_pooling(argv, told):
    with pytest.raises(ConfigError, match=told):
        parsed(ServeConfig, "m", *argv)
