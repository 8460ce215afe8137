"""The command itself, in process, against a stand-in server in a process of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from benchmarks import serve
from tests.ports import free_port

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.e2e


@pytest.fixture
def bench(tmp_path, capsys):
    """`bench(url, "--num-prompts", 3, …)` gives exit status, summary, request lines, stderr."""

    def run(url, *options):
        summary, lines = tmp_path / "summary.json", tmp_path / "requests.jsonl"
        parser = argparse.ArgumentParser()
        serve.add_arguments(parser)
        files = ["--result-file", summary, "--requests-file", lines]
        words = ["--base-url", url, "--input-len", 7, *files, *options]
        status = serve.run(parser.parse_args([str(word) for word in words]))
        err = capsys.readouterr().err
        if not (summary.exists() and summary.stat().st_size):
            return status, None, None, err
        rows = [json.loads(line) for line in lines.read_text().splitlines()]
        return status, json.loads(summary.read_text()), rows, err

    return run


FAST = ("--ttft-ms", 5, "--itl-ms", 1)
SMALL = ("--num-prompts", 6, "--output-len", 4)


@pytest.mark.parametrize(
    ("endpoint", "load"),
    [
        ("/v1/completions", ("--max-concurrency", 6)),
        ("/v1/chat/completions", ("--request-rate", 8, "--burstiness", 2)),
    ],
)
def test_known_delays_come_back_within_two_per_cent(bench, start_stand_in, endpoint, load):
    url = start_stand_in("--ttft-ms", 500, "--itl-ms", 80)
    options = ("--endpoint", endpoint, "--num-prompts", 24, "--num-warmups", 2, "--output-len", 8)
    status, summary, rows, _ = bench(url, *options, *load)
    assert (status, summary["completed"], summary["failed"]) == (0, 24, 0)
    assert summary["median_ttft_ms"] == pytest.approx(500, rel=0.02)
    assert summary["median_itl_ms"] == pytest.approx(80, rel=0.02)
    assert summary["median_tpot_ms"] == pytest.approx(80, rel=0.02)
    assert summary["median_e2el_ms"] == pytest.approx(500 + 7 * 80, rel=0.02)
    assert [len(row["itls_s"]) for row in rows] == [7] * 24
    assert summary["total_output_tokens"] == 24 * 8


def test_token_ids_arrive_as_counted(bench, start_stand_in):
    status, summary, rows, _ = bench(start_stand_in(*FAST), *SMALL, "--random-prefix-len", 5)
    assert status == 0
    assert summary["total_input_tokens"] == 6 * 12
    assert [row["input_tokens"] for row in rows] == [12] * 6
    assert [row["index"] for row in rows] == list(range(6))
    assert all(row["finish_reason"] == "length" for row in rows)


def test_coalesced_chunks_leave_tpot_right(bench, start_stand_in):
    url = start_stand_in("--ttft-ms", 300, "--itl-ms", 50, "--tokens-per-chunk", 4)
    _, summary, _, err = bench(url, "--num-prompts", 8, "--output-len", 13)
    assert summary["median_tpot_ms"] == pytest.approx(50, rel=0.02)
    assert summary["median_itl_ms"] == pytest.approx(200, rel=0.02)
    assert summary["tokens_per_chunk"] == pytest.approx(13 / 4)
    assert "chunks carry 3.25 tokens" in err


def test_a_server_that_falls_behind_cannot_hide_it(bench, start_stand_in):
    """One place, 0.2 s each, one due every 0.05 s: each waits 0.15 s more than the one before."""
    url = start_stand_in("--ttft-ms", 200, "--itl-ms", 1, "--slots", 1)
    options = ("--request-rate", 20, "--burstiness", "inf", "--num-prompts", 10, "--output-len", 1)
    _, summary, rows, _ = bench(url, *options)
    assert rows[9]["ttft_s"] >= 0.2 + 9 * 0.15
    assert rows[9]["sent_s"] == pytest.approx(10 * 0.05, abs=0.1)
    limited = bench(url, *options, "--max-concurrency", 1)[2]
    assert limited[9]["ttft_s"] >= 0.2 + 9 * 0.15  # waiting in the client counts the same
    assert limited[9]["queue_s"] >= 9 * 0.15 - 0.1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("http500", "HTTP 500: told to fail"),
        ("cut", "connection lost in mid-stream"),
        ("error-event", "error event: told to fail in mid-stream"),
        ("hang", "no complete answer within 0.5 s"),
    ],
)
def test_all_failed(bench, start_stand_in, fault, reason):
    url = start_stand_in(*FAST, "--fault", fault)
    status, summary, rows, _ = bench(url, *SMALL, "--request-timeout", 0.5, "--save-detailed")
    assert status == 1
    assert (summary["completed"], summary["failed"]) == (0, 6)
    assert summary["error_counts"] == {reason: 6}
    assert summary["errors"] == [row["error"] for row in rows] == [reason] * 6


def test_some_failed(bench, start_stand_in):
    url = start_stand_in(*FAST, "--fault", "http500", "--fault-rate", 0.5)
    options = ("--num-prompts", 30, "--output-len", 4, "--max-concurrency", 1)
    status, summary, rows, _ = bench(url, *options)
    assert status == 0
    assert summary["completed"] + summary["failed"] == 30
    assert 5 <= summary["failed"] <= 25
    assert summary["failed"] == sum(not row["ok"] for row in rows)


def test_answers_without_usage_are_marked(bench, start_stand_in):
    status, summary, _, err = bench(start_stand_in(*FAST, "--fault", "no-usage"), *SMALL)
    assert (status, summary["uncounted"], summary["total_output_tokens"]) == (0, 6, 24)
    assert "without usage" in err


def test_refused_connection_is_one_line(bench):
    url = f"http://127.0.0.1:{free_port()}"
    status, summary, _, err = bench(url, *SMALL)
    assert (status, summary) == (1, None)
    assert err == f"error: cannot reach {url}: connection refused\n"


def test_waits_for_a_server_that_is_still_starting(bench):
    port = free_port()
    command = f"import time, sys, runpy; time.sleep(0.7); sys.argv = ['x', '--port', '{port}']; "
    command += "runpy.run_module('benchmarks.standin_server', run_name='__main__')"
    process = subprocess.Popen([sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        status, _, _, _ = bench(url, "--num-prompts", 1, "--output-len", 1, "--ready-timeout", 60)
    finally:
        process.kill()
        process.wait(timeout=10)
    assert status == 0


def test_summary_says_what_was_run(bench, start_stand_in):
    url = start_stand_in(*FAST) + "/v1/"
    options = ("--label", "here", "--metadata", "version=3", "tp=1", "--seed", 5)
    status, summary, _, _ = bench(url, *SMALL, *options, "--slo", "ttft_ms=60000")
    assert status == 0
    asked = {
        "backend": "openai",
        "endpoint_type": "openai",
        "label": "here",
        "model_id": "stand-in",
        "tokenizer_id": None,
        "num_prompts": 6,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": None,
        "version": "3",
        "tp": "1",
        "interrupted": False,
    }
    assert asked.items() <= summary.items()
    assert time.strptime(summary["date"], "%Y%m%d-%H%M%S")
    assert summary["workload"]["seed"] == 5
    assert summary["request_goodput"] == summary["request_throughput"]
    assert "ttfts" not in summary


def test_detailed_lists(bench, start_stand_in):
    _, summary, rows, _ = bench(start_stand_in(*FAST), *SMALL, "--save-detailed")
    assert summary["ttfts"] == [row["ttft_s"] for row in rows]
    assert summary["output_lens"] == [4] * 6
    assert summary["generated_texts"] == ["token " * 4] * 6


def test_prompts_from_a_file_as_chat(bench, start_stand_in, tmp_path):
    file = tmp_path / "p.jsonl"
    file.write_text(
        '{"messages": [{"role": "user", "content": "a b c"}], "output_len": 2}\n{"prompt": "d"}'
    )
    options = ("--dataset", "text", "--dataset-path", file, "--endpoint", "/v1/chat/completions")
    status, _, rows, _ = bench(start_stand_in(*FAST), *SMALL[:2], *options, "--output-len", 3)
    assert status == 0
    assert [(row["input_tokens"], row["output_tokens"]) for row in rows[:2]] == [(3, 2), (1, 3)]


def test_trace_file_sets_the_times(bench, start_stand_in, tmp_path):
    trace = tmp_path / "trace"
    trace.write_text("0\n0\n0.3\n")
    options = ("--num-prompts", 3, "--output-len", 1, "--trace-file", trace)
    _, _, rows, _ = bench(start_stand_in(*FAST), *options)
    assert [row["due_s"] for row in rows] == pytest.approx([0, 0, 0.3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--slo", "ttft=3"), "--slo: unknown target"),
        (("--request-rate", 0), "--request-rate must be"),
        (("--num-prompts", 0), "--num-prompts must be"),
        (("--max-concurrency", 0), "--max-concurrency must be"),
        (("--request-timeout", 0), "--request-timeout must be"),
        (("--output-len", 0), "--output-len must be"),
        (("--seed", -1), "must not be negative"),
        (("--extra-body", "{"), "--extra-body is not JSON"),
        (("--extra-body", "[]"), "--extra-body must be"),
        (("--extra-body", '{"n": 2}'), "one streamed choice"),
        (("--endpoint", "/v1/embeddings"), "--endpoint must be"),
        (("--dataset", "text"), "needs --dataset-path"),
        (("--dataset-path", "x"), "needs --dataset text"),
        (("--percentile-metrics", "ttft,speed"), "unknown speed"),
        (("--metric-percentiles", "50,101"), "from 0 to 100"),
        (("--metadata", "novalue"), "not KEY=VALUE"),
        (("--vocab-size", 3), "--vocab-size must be"),
        (("--result-file", "/nowhere/at/all.json"), "cannot write"),
        (("--base-url", "localhost:8000"), "must start with http"),
    ],
)
def test_settings_that_make_no_sense_are_one_line(bench, options, words):
    status, _, _, err = bench("http://127.0.0.1:9", *options)
    assert status == 2
    assert err.startswith("error: ")
    assert words in err
    assert err.count("\n") == 1


def test_the_api_key_is_never_written(bench, start_stand_in, tmp_path):
    bench(start_stand_in(*FAST), *SMALL, "--api-key", "secret-7", "--save-detailed")
    assert not any("secret-7" in file.read_text() for file in tmp_path.iterdir())


def test_ctrl_c_writes_what_is_there(start_stand_in, tmp_path):
    url = start_stand_in(*FAST)
    result = tmp_path / "summary.json"
    command = [sys.executable, "-m", "benchmarks.serve", "--base-url", url, "--output-len", "2"]
    command += ["--request-rate", "20", "--num-prompts", "2000", "--result-file", str(result)]
    command += ["--requests-file", str(tmp_path / "requests.jsonl"), "--input-len", "3"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while _arrived(url) < 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    summary = json.loads(result.read_text())
    assert summary["interrupted"] is True
    assert 1 <= summary["completed"] < 2000
    assert summary["num_prompts"] == 2000
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == summary["completed"]
    assert "TTFT" in out
    assert "interrupted: partial results" in err


def _arrived(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return int(json.load(answer)["arrived"])
