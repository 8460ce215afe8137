"""Nobody measures time by a clock that people set: an hour's jump must change no decision.

What is written for others to read (times of creation, of failures, of events, of files) may come
from it.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "proxy", "prefill", "decode", "kv_transfer", "scripts")
WALL_CLOCKS = {"time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"}
MAY = {
    "common/api/generation.py": "`created` in answers",
    "common/api/scripted.py": "`created` of a model",
    "common/api/responses/runs.py": "`completed_at` in answers",
    "common/api/responses/endpoints.py": "`created_at` in answers",
    "common/instance/parts.py": "`created` of a model",
    "common/instance/adapters.py": "`created` of a model",
    "common/instance/kv_events.py": "the time in vLLM's event format",
    "common/template_sandbox.py": "`strftime_now` of chat templates",
    "proxy/relay.py": "`created` of a model, times of failures",
    "proxy/status.py": "`now` on the status page",
    "kv_transfer/transport/quota.py": "ages of files, which have no other clock",
    "kv_transfer/transport/shared_storage.py": "the same",
}


def wall_clocks_in(path: Path) -> set[str]:
    """Names called in it that read the wall clock, as far as their last two parts tell."""
    nodes = ast.walk(ast.parse(path.read_text()))
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    return {name for each in called if (name := ".".join(_parts(each)[-2:])) in WALL_CLOCKS}


def _parts(node: ast.expr) -> list[str]:
    if isinstance(node, ast.Attribute):
        return [*_parts(node.value), node.attr]
    return [node.id] if isinstance(node, ast.Name) else []


def test_only_what_is_shown_or_filed_reads_the_wall_clock():
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if wall_clocks_in(path)
    }
    assert found == set(MAY)
