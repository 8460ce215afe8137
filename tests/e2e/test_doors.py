"""What the programs refuse to open, and keys that change while a proxy serves over TLS."""

from __future__ import annotations

import argparse
import os
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from common.config import ProxyConfig
from common.options import add_options
from scripts.cli import main

ROOT = Path(__file__).parents[2]
SERVE = ("serve", "no-such-model")


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch):
    for name in ("XPYD_CLUSTER_KEY", "XPYD_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["proxy", "--registry-host", "0.0.0.0"], "XPYD_CLUSTER_KEY"),
        (["proxy", "--registry-host", "192.0.2.1"], "--cluster-key-file"),
        (["proxy", "--host", "0.0.0.0"], "--allow-open-http"),
        (["proxy", "--cluster-key-file", "/no/such/file"], "No such file"),
        (["proxy", "--api-key-file", "/no/such/file"], "No such file"),
        (["proxy", "--ssl-certfile", "/no/such/file"], "No such file"),
        ([*SERVE, "--role", "prefill", "--internal-host", "0.0.0.0"], "XPYD_CLUSTER_KEY"),
        ([*SERVE, "--role", "decode", "--internal-host", "::"], "XPYD_CLUSTER_KEY"),
        ([*SERVE, "--internal-host", "node7"], "XPYD_CLUSTER_KEY"),
        ([*SERVE, "--host", "0.0.0.0"], "--allow-open-http"),
        (["up", "--host", "0.0.0.0"], "--allow-open-http"),
        (["up", "--ssl-certfile", "/no/such/file"], "No such file"),
        (["up", "--cluster-key-file", "/no/such/file"], "No such file"),
    ],
)
def test_an_open_door_is_refused_in_one_line(argv, named, capsys):
    assert main(argv) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert named in said


def test_a_short_cluster_key_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("XPYD_CLUSTER_KEY", "short")
    assert main(["proxy"]) == 2
    assert "at least 16" in capsys.readouterr().err


def test_there_is_no_flag_for_the_key_itself():
    flags = [flag for action in parser_of(ProxyConfig)._actions for flag in action.option_strings]
    assert "--cluster-key-file" in flags
    assert "--cluster-key" not in flags
    assert "secret" not in repr(ProxyConfig(cluster_key="secret"))


def parser_of(config):
    parser = argparse.ArgumentParser()
    add_options(parser, config)
    return parser


@pytest.fixture
def certificate(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-keyout", str(key), "-out", str(cert), "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return str(cert), str(key)


@pytest.mark.e2e
def test_keys_are_read_again_on_sighup_over_tls(certificate, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "scripts.cli", "proxy", "--port", "0", "--registry-port", "0"),
            *("--api-key-file", str(keys), "--host", "127.0.0.1"),
            *("--ssl-certfile", certificate[0], "--ssl-keyfile", certificate[1]),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "XPYD_LOG_LEVEL": "INFO"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        line = next((line for line in process.stderr if "proxy at" in line), "")
        assert line, "the proxy did not start"
        trusting = ssl.create_default_context(cafile=certificate[0])
        with httpx.Client(base_url=line.split()[-1], verify=trusting, timeout=60) as client:
            wait_for(lambda: status(client, "old") == 200)
            assert status(client, "new") == 401
            keys.write_text("new\n")
            process.send_signal(signal.SIGHUP)
            wait_for(lambda: status(client, "new") == 200)
            assert status(client, "old") == 401
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()
    assert process.returncode == 0


def status(client, key):
    try:
        answer = client.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
    except httpx.ConnectError:
        return None
    return answer.status_code


def wait_for(condition, timeout_s=60.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
