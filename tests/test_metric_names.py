"""Every metric that docs/observability.md and the dashboard name is one that some process has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for top in ("common", "proxy", "prefill", "decode") for path in (ROOT / top).rglob("*.py")
]
LITERALS = {
    literal for path in SOURCES for literal in re.findall(r'"([a-z0-9_]+)"', path.read_text())
} | {f"kv_blocks_{state}" for state in ("used", "held", "reserved")}
SUFFIXES = ("_total", "_bucket", "_sum", "_count", "")


@pytest.mark.parametrize("place", ["docs/observability.md", "examples/grafana.json"])
def test_named_metrics_exist(place):
    names = set(re.findall(r"xpyd:(\w+)", (ROOT / place).read_text()))
    assert len(names) > 15
    unknown = [n for n in names if not {n.removesuffix(s) for s in SUFFIXES} & LITERALS]
    assert unknown == []


def test_the_dashboard_asks_and_shows():
    panels = json.loads((ROOT / "examples" / "grafana.json").read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert panel["targets"] and all(target["expr"] for target in panel["targets"])
