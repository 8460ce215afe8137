"""One answer of the proxy's `/status` as lines of text. Pure: no terminal, no clock.

What instances say of themselves is shown without control characters, so that no name can move the
cursor or change the colours of whoever watches.
"""

from __future__ import annotations

import time
from typing import Any

from common.waterfall import HANDOVER, TO_FIRST

Status = dict[str, Any]

_COLORS = {"bold": "1", "quiet": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_STATE_COLORS = {"ready": "green", "dead": "red"}
_BAR = 10


def view(
    status: Status, width: int, height: int, is_colored: bool, complaint: str = ""
) -> list[str]:
    """At most `height` lines of at most `width` characters, colours not counted."""
    paint = _Paint(is_colored)
    fixed = [
        _heading(status, paint),
        _traffic(status),
        *_controller(status, paint),
        *_latencies(status, paint),
        "",
    ]
    if complaint:
        fixed.insert(0, paint(_clean(complaint) + "; this is what it said last", "red"))
    failures = _failures(status, paint)
    left = height - len(fixed) - 1  # the heading of the table
    num_failures = min(len(failures), max(2, left // 4)) if left > 4 else 0
    instances = _instances(status, paint, max(1, left - num_failures))
    lines = [*fixed, *instances, *failures[:num_failures]]
    return [_clip(line, width) for line in lines[:height]]


class _Paint:
    def __init__(self, is_on: bool) -> None:
        self._is_on = is_on

    def __call__(self, text: str, *colors: str) -> str:
        if not self._is_on or not text:
            return text
        codes = ";".join(_COLORS[color] for color in colors)
        return f"\x1b[{codes}m{text}\x1b[0m"


def _heading(status: Status, paint: _Paint) -> str:
    if status["is_draining"]:
        health = paint("draining", "yellow")
    else:
        health = paint("ready", "green") if status["is_ready"] else paint("not ready", "red")
    clock = time.strftime("%H:%M:%S", time.localtime(status["now"]))
    parts = [paint("xpyd", "bold"), _clean(status["model"]) or "no model yet"]
    parts += [paint(_clean(status["topology"]), "bold"), health]
    if workers := status.get("workers"):
        num_answered = len(workers["answered"])
        missing = "yellow" if num_answered < workers["count"] else "quiet"
        parts.append(paint(f"{num_answered} of {workers['count']} workers", missing))
    return "  ".join([*parts, f"up {_age(status['uptime_s'])}", paint(clock, "quiet")])


def _traffic(status: Status) -> str:
    recent, counts = status["recent"], status["counts"]
    return (
        f"{status['requests_in_flight']} in flight ({status['requests_waiting']} between instances)"
        f"  {status['requests_queued']} queued"
        f"  {_pace(recent['requests_per_s'])} requests/s"
        f"  {_pace(recent['generation_tokens_per_s'])} tokens/s"
        f"  {_pace(recent['prompt_tokens_per_s'])} prompt tokens/s"
        f"  {counts['migrations']} moved  {counts['failed']} lost"
    )


def _controller(status: Status, paint: _Paint) -> list[str]:
    """What it would rather have, if there is one."""
    advice = status.get("controller")
    if advice is None:
        return []
    wanted = paint(_clean(advice["suggests"]), "yellow" if advice["flip"] else "quiet")
    return [f"controller ({_clean(advice['mode'])}): {wanted}, {_clean(advice['reason'])}"]


def _latencies(status: Status, paint: _Paint) -> list[str]:
    recent = status["recent"]
    stages = recent["stages"]
    rows = [
        ("first token", recent["ttft"]),
        ("between tokens", recent["itl"]),
        ("hand-over", stages.get(HANDOVER) or {"count": 0}),
    ]
    lines = [
        "",
        paint(f"{'last minute':<16}{'p50':>10}{'p90':>10}{'p99':>10}{'count':>10}", "quiet"),
    ]
    for name, found in rows:
        numbers = "".join(f"{_time(found.get(each)):>10}" for each in ("p50", "p90", "p99"))
        lines.append(f"{name:<16}{numbers}{found['count']:>10}")
    spent = [f"{name} {_time(stages[name]['p50'])}" for name in TO_FIRST if name in stages]
    if spent:
        lines.append(paint("first token, p50: ", "quiet") + " · ".join(spent))
    return lines


def _instances(status: Status, paint: _Paint, max_rows: int) -> list[str]:
    """A heading, then at most `max_rows` lines."""
    found = status["instances"]
    if not found:
        return ["no instance has been found yet"]
    longest = max(len(_clean(each["id"])) for each in found)
    name = max(8, min(40, longest))
    head = f"{'INSTANCE':<{name}}  ROLE     STATE       OURS   RUN  WAIT  QUEUED  KV IN USE"
    rows = [_instance(each, name, paint) for each in found]
    if len(rows) > max_rows:
        hidden = len(rows) - max_rows + 1
        rows = [*rows[: max_rows - 1], paint(f"… and {hidden} more; --once shows all", "quiet")]
    return [paint(head, "quiet"), *rows]


def _instance(instance: Status, name: int, paint: _Paint) -> str:
    load = instance["load"] or {}
    state = paint(
        f"{_clean(instance['state']):<10}", _STATE_COLORS.get(instance["state"], "yellow")
    )
    numbers = (instance["requests"], load.get("num_running"), load.get("num_waiting"))
    counts = " ".join(f"{_number(each):>5}" for each in numbers)
    queued = f"{_number(load.get('num_waiting_tokens')):>7}"
    label = _clean(instance["id"])
    label = label if len(label) <= name else label[: name - 1] + "…"
    role = f"{_clean(instance['role']):<8}"
    return f"{label:<{name}}  {role} {state}{counts} {queued}  {_usage(load, paint)}"


def _usage(load: Status, paint: _Paint) -> str:
    if not load.get("total_blocks"):
        return ""
    share = 1 - load["free_blocks"] / load["total_blocks"]
    filled = round(share * _BAR)
    bar = paint("█" * filled, "red" if share > 0.9 else "cyan") + paint(
        "░" * (_BAR - filled), "quiet"
    )
    return f"{bar} {share:4.0%}"


def _failures(status: Status, paint: _Paint) -> list[str]:
    if not status["failures"]:
        return []
    lines = ["", paint("RECENT FAILURES", "quiet")]
    for each in status["failures"]:
        clock = time.strftime("%H:%M:%S", time.localtime(each["at"]))
        times = f" ×{each['count']}" if each["count"] > 1 else ""
        where = " ".join(_clean(each[key]) for key in ("instance", "request_id") if each[key])
        what = paint(f"{_clean(each['what'])}{times}", "yellow")
        lines.append(f"{clock}  {what}  {where}: {_clean(each['message'])}")
    return lines


def _clean(text: object) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(text))


def _clip(line: str, width: int) -> str:
    """The first `width` characters; colour codes are none, and the last is switched off."""
    shown, at = 0, 0
    while at < len(line):
        if line[at] == "\x1b":
            at = line.index("m", at) + 1
            continue
        if shown == width:
            return line[:at] + ("\x1b[0m" if "\x1b" in line else "")
        shown, at = shown + 1, at + 1
    return line


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _pace(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 0.1:
        return f"{seconds * 1e3:.2f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
