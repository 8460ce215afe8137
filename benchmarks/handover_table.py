"""The numbers of a hand-over run beside their targets, as a table: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render(found: Mapping[str, Any]) -> str:
    rows = [("what", "measured", "target"), *_ttft(found), *_overhead(found), *_streams(found)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def _ttft(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for row in found.get("ttft", ()):
        name = f"{row['prompt_tokens']} tokens"
        spread = f"{row['ttft_ratio_lowest']:.2f} to {row['ttft_ratio_highest']:.2f}"
        rows.append(
            (
                f"TTFT, {name}: 1P1D over one core",
                f"{row['ttft_1p1d_ms']:.0f} ms / {row['ttft_one_core_ms']:.0f} ms = "
                f"{row['ttft_ratio']:.3f} ({spread})",
                "at most 1.05",
            )
        )
        rows.append(
            (
                f"token 1 to 2, {name}, less two steps of {row['step_ms']:.1f} ms",
                f"{row['first_gap_less_2_steps_ms']:.1f} ms (gap {row['first_gap_ms']:.1f} ms)",
                "at most 10 ms",
            )
        )
    return rows


def _overhead(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    row = found.get("overhead")
    if row is None:
        return []
    return [
        (
            f"64-token prompts, 10M model: more to the {name}",
            f"{row[f'more_to_{key}_token_ms']:.2f} ms",
            target,
        )
        for name, key, target in (
            ("first token", "first", ""),
            ("second token", "second", "at most 2 ms"),
            ("end of 16 tokens", "end", ""),
        )
    ]


def _streams(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    for row in found.get("interference", ()):
        target = "p50 1.2, p99 1.4" if row["side"] == "1P1D" else ""
        rows.append(
            (
                f"ITL of two streams beside 2048-token prompts: {row['side']}",
                f"p50 {row['alone_p50_ms']:.0f} to {row['beside_p50_ms']:.0f} ms "
                f"({row['ratio_p50']:.2f}), p99 {row['alone_p99_ms']:.0f} to "
                f"{row['beside_p99_ms']:.0f} ms ({row['ratio_p99']:.2f}), "
                f"max {row['beside_max_ms']:.0f} ms",
                target,
            )
        )
        waits = ", ".join(map(str, row["long_prompt_ttft_ms"]))
        floor = found.get("gemm_floor_ms", {}).get("2048")
        rows.append(
            (
                f"  TTFT of the long prompts: {row['side']}",
                f"{waits} ms",
                f"1.2 x {floor:.0f} ms" if floor and row["side"] == "1P1D" else "",
            )
        )
    if bus := found.get("bus"):
        rows.append(
            (
                "bare sweep of the weights beside a bare GEMM",
                f"{bus['sweep_ms']:.0f} to {bus['sweep_beside_gemm_ms']:.0f} ms: "
                f"p50 {bus['ratio_p50']:.2f}, p99 {bus['ratio_p99']:.2f}",
                "the floor of the ratios above",
            )
        )
    return rows
