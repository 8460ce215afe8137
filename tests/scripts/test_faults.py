"""The parts of `xpyd chaos` that decide: what breaks, what may be touched, what is a fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from common.errors import ConfigError
from scripts.faults.schedule import KINDS, schedule
from scripts.faults.stream import Answer
from scripts.faults.targets import read_targets, start_again
from scripts.faults.verdict import Row, report, verdict
from scripts.faults.workload import jobs, stopping

FLEET = ["prefill-0", "prefill-1", "decode-0"]
SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_a_seed_fixes_what_breaks_and_everything_breaks_once():
    first = list(islice(schedule(3, list(KINDS), FLEET), 40))
    assert first == list(islice(schedule(3, list(KINDS), FLEET), 40))
    assert first != list(islice(schedule(4, list(KINDS), FLEET), 40))
    seen = {(fault.kind.name, fault.victim) for fault in first}
    away = {name for name, kind in KINDS.items() if kind.takes_away}
    assert away == {"kill", "terminate", "stop", "cut", "silence"}
    assert seen == {
        *((kind, f"prefill-{number}") for kind in away for number in (0, 1)),
        *((kind, name) for kind in ("pause", "slow") for name in FLEET),
        *(("hang-up", ""), ("nothing", ""), ("registry", "registry")),
    }
    assert {fault.kind.name for fault in first[: len(KINDS)]} == set(KINDS), "each kind comes early"


def test_the_only_one_of_its_role_is_not_taken_away():
    assert list(schedule(0, ["kill", "stop", "terminate"], ["prefill-0", "decode-0"])) == []


@pytest.fixture
def sleeping(tmp_path):
    """A topology file whose only prefill instance is a process that sleeps."""
    process = subprocess.Popen(SLEEPER)
    path = tmp_path / "topology.json"
    row = {
        "url": "http://127.0.0.1:1",
        "pid": process.pid,
        "start": SLEEPER,
        "env": {},
        "cwd": str(tmp_path),
        "log": str(tmp_path / "log"),
    }
    path.write_text(json.dumps({"prefill": [row], "decode": []}))
    deadline = time.monotonic() + 30
    while not read_targets(path)[0].is_running():  # its exec is under way
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield process, path
    process.kill()
    process.wait()


def test_only_the_process_that_the_file_names_is_touched(sleeping):
    process, path = sleeping
    (target,) = read_targets(path)
    assert target.name == "prefill-0"
    target.signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM
    contents = json.loads(path.read_text())
    contents["prefill"][0]["pid"] = os.getpid()
    path.write_text(json.dumps(contents))
    with pytest.raises(ConfigError, match="is not prefill-0"):
        read_targets(path)[0].signal(signal.SIGKILL)


def test_what_has_ended_is_started_as_the_file_says(sleeping):
    process, path = sleeping
    (target,) = read_targets(path)
    with start_again(target, path) as started:
        try:
            assert read_targets(path)[0].pid == started.pid != process.pid
            assert started.args == target.argv
        finally:
            started.kill()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"prefill": [{}], "decode": []}'])
def test_what_is_no_topology_file_is_refused(text, tmp_path):
    path = Path(tmp_path / "topology.json")
    path.write_text(text)
    with pytest.raises(ConfigError):
        read_targets(path)


def chunk(text, finish=None, index=0, **more):
    return {"choices": [{"index": index, "text": text, "finish_reason": finish}], **more}


def test_answers_are_compared_by_what_they_say_not_by_their_chunks():
    whole, pieces, other = Answer("a"), Answer("a"), Answer("a")
    whole.take(chunk("one two", "stop"))
    for text, finish in (("one", None), (" two", None), ("", "stop")):
        pieces.take(chunk(text, finish))
    other.take(chunk("one two", "length"))
    assert whole.said() == pieces.said()
    assert whole.said() != other.said()
    cut = Answer("a")
    cut.take(chunk("one t"))
    assert cut.is_prefix_of(whole)
    cut.take(chunk("x"))
    assert not cut.is_prefix_of(whole)


def test_logprobs_and_usage_are_part_of_what_is_said():
    plain, counted, rated = Answer("a"), Answer("a"), Answer("a")
    for answer in (plain, counted, rated):
        answer.take(chunk("one", "stop"))
    counted.take({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}})
    logprobs = {"tokens": ["one"], "token_logprobs": [-0.5], "top_logprobs": [{"one": -0.5}]}
    rated.take({"choices": [{"index": 0, "text": "", "logprobs": logprobs}]})
    assert len({plain.said(), counted.said(), rated.said()}) == 3


def test_an_error_event_is_no_end():
    answer = Answer("a", status=200)
    answer.take({"error": {"message": "nobody is left"}})
    answer.is_done = True
    assert not answer.is_complete
    assert not answer.is_refused


def test_a_stop_string_comes_from_late_in_the_known_answer():
    job = jobs("m", 50, 30)[0]
    text = " ".join(f"word{i}" for i in range(50))
    assert stopping(job, text).body["stop"] == ["word40 word41 word42"]
    assert stopping(job, "") is job


def test_nothing_tried_is_no_pass():
    assert verdict([]) == "nothing was tried"
    good = Row("kill", "decode-0", 5.0, streams=7, gap_s=2.0, whole_after_s=9.0)
    assert verdict([good]) == "pass"
    for bad in (
        Row("kill", "decode-0", 5.0, gap_s=5.1),
        Row("kill", "decode-0", 5.0, altered=1),
        Row("kill", "decode-0", 5.0, failed=1),
        Row("kill", "decode-0", 5.0, refused=1),
        Row("kill", "decode-0", 5.0, complaints=["not at rest"]),
    ):
        assert verdict([good, bad]) == "fail"
        assert report([good, bad], 0, 1.0)["rounds"][1]["problems"]
