from __future__ import annotations

import argparse
import json

import pytest

from benchmarks import compare
from benchmarks.ratios import Row, Summary, names_of, render
from benchmarks.ratios import compare as compare_rounds


def test_ratio_is_the_median_of_ratios_within_rounds():
    """The machine is twice as slow in the second round; B is a tenth slower in each."""
    rounds = [({"x": 10.0}, {"x": 11.0}), ({"x": 20.0}, {"x": 22.0}), ({"x": 10.0}, {"x": 12.0})]
    (row,) = compare_rounds(rounds, ["x"])
    assert (row.name, row.a, row.b) == ("x", 10.0, 12.0)
    assert (row.ratio, row.lowest, row.highest) == pytest.approx((1.1, 1.1, 1.2))


def test_a_value_that_one_round_lacks_has_no_row():
    rounds: list[tuple[Summary, Summary]] = [({"x": 1.0}, {"x": 1.0}), ({"x": 1.0}, {"x": None})]
    assert compare_rounds(rounds, ["x", "y"]) == []
    assert compare_rounds([], ["x"]) == []


def test_no_ratio_to_zero():
    (row,) = compare_rounds([({"x": 0.0}, {"x": 2.0})], ["x"])
    assert row == Row("x", 0.0, 2.0, None, None, None)
    assert "2.000" in render([row], "one", "two", 1)


def test_names_are_those_of_the_summary():
    names = names_of(["ttft"], [50, 99.9], has_slo=True)
    assert names[2:] == ["request_goodput", "mean_ttft_ms", "p50_ttft_ms", "p99.9_ttft_ms"]
    assert "request_goodput" not in names_of(["ttft"], [50], has_slo=False)


def run(*words):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.run(parser.parse_args([str(word) for word in words]))


SMALL = ("--num-prompts", 8, "--input-len", 5, "--output-len", 5, "--max-concurrency", 8)


@pytest.mark.e2e
def test_recovers_the_ratio_of_two_servers(start_stand_in, tmp_path, capsys):
    a = start_stand_in("--ttft-ms", 200, "--itl-ms", 40)
    b = start_stand_in("--ttft-ms", 300, "--itl-ms", 80)
    result = tmp_path / "result.json"
    status = run("--a", a, "--b", b, *SMALL, "--rounds", 2, "--result-file", result)
    captured = capsys.readouterr()
    assert status == 0
    found = json.loads(result.read_text())
    assert found["rows"]["p50_ttft_ms"]["ratio"] == pytest.approx(1.5, rel=0.05)
    assert found["rows"]["p50_tpot_ms"]["ratio"] == pytest.approx(2.0, rel=0.05)
    assert [r["a"]["workload"]["seed"] for r in found["rounds"]] == [0, 1]
    order = [
        line.split(", ")[1].split(": ")[0] for line in captured.err.splitlines() if "round" in line
    ]
    assert order == [a, b, b, a]
    assert "p50_ttft_ms" in captured.out


@pytest.mark.e2e
def test_one_side_that_fails(start_stand_in, capsys):
    a = start_stand_in("--ttft-ms", 5, "--itl-ms", 1)
    b = start_stand_in("--fault", "http500")
    assert run("--a", a, "--b", b, *SMALL, "--rounds", 1) == 1
    assert "failed x 8: HTTP 500: told to fail" in capsys.readouterr().err


def test_settings_that_make_no_sense(capsys):
    assert run("--a", "http://x", "--b", "http://y", "--rounds", 0) == 2
    assert run("--a", "http://127.0.0.1:9", "--b", "y", *SMALL) == 2
    assert run("--a", "http://127.0.0.1:9", "--b", "http://127.0.0.1:9", *SMALL) == 1
    assert capsys.readouterr().err.count("error: ") == 3
