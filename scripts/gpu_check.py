"""Everything that needs a GPU, in one call of under nine minutes: checks, floors, times, a table.

    python scripts/gpu_check.py --out DIR [--wheels DIR] [--only kernels,model]

Runs from a bare image that has torch and triton; --wheels names a directory with whatever else is
missing, installed without a network. A part that fails is reported and the others go on. Writes
gpu_check.json to --out, prints a short table last, exits 1 if a check failed. Without a GPU it says
so and exits 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BUDGET_S = 530.0


@dataclass(slots=True)
class Report:
    """What was found so far: rows for the table, everything for the file."""

    began: float = field(default_factory=time.monotonic)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    num_failed: int = 0

    def row(self, name: str, value: str, note: str = "") -> None:
        self.rows.append((name, value, note))
        print(f"  {name}: {value} {note}", flush=True)

    def left_s(self) -> float:
        return BUDGET_S - (time.monotonic() - self.began)


def check_kernels(report: Report) -> None:
    from benchmarks.gpu.correctness import checks

    errors = {}
    for name, (check, limit) in checks().items():
        try:
            error = check()
            is_right = error <= limit
            text = f"{error:.2g}"
        except Exception as problem:
            traceback.print_exc()
            error, is_right, text = float("nan"), False, f"{type(problem).__name__}"
        errors[name] = error
        if not is_right:
            report.num_failed += 1
            report.row(name, text, f"FAILED, limit {limit:g}")
    report.details["kernel errors"] = errors
    num_right = len(errors) - report.num_failed
    report.row("kernels against references", f"{num_right} of {len(errors)}")


def time_kernels(report: Report) -> None:
    from benchmarks.gpu.kernel_times import attention_shares, other_shares

    found = {}
    for shares in (attention_shares, other_shares):
        for name, took, share in shares(report.details["ceilings object"]):
            found[name] = {"us": took * 1e6, "share": share}
            report.row(name, f"{took * 1e6:.0f} us", f"{share:.0%} of the floor's rate")
    report.details["kernel times"] = found


def measure_floors(report: Report) -> None:
    from benchmarks.gpu.ceilings import measure_ceilings

    ceilings = measure_ceilings()
    report.details["ceilings object"] = ceilings
    report.row("read bandwidth", f"{ceilings.read_bytes_s / 1e12:.2f} TB/s")
    report.row("copy bandwidth", f"{ceilings.copy_bytes_s / 1e12:.2f} TB/s")
    report.row("bf16 GEMM", f"{ceilings.gemm_flop_s / 1e12:.0f} TFLOP/s")


def time_model(report: Report) -> None:
    import torch

    from benchmarks.gpu.model_times import graph_error, llama_8b, new_cache, step_times
    from common.model.tuning import tune_kernels
    from kernels.gpu.tuning import Tuner, device_file, launch_seconds

    model = llama_8b()
    cache = new_cache(model)
    began = time.monotonic()
    tune_kernels(model, cache, 256, 2048, Tuner(device_file(), launch_seconds))
    report.row("tuning", f"{time.monotonic() - began:.0f} s")
    if device_file().exists():
        report.details["tuned"] = json.loads(device_file().read_text())
    error = graph_error(model, cache)
    if error > 0.02:
        report.num_failed += 1
    report.row("graph against eager", f"{error:.2g}", "FAILED" if error > 0.02 else "")
    rows = step_times(model, cache, report.details["ceilings object"])
    for row in rows:
        note = "".join(f"{k} {v:.2f} " for k, v in row.items() if k in ("over floor", "of peak"))
        report.row(f"8B {row['name']}", f"{float(row['seconds']) * 1e3:.2f} ms", note)
    report.details["model times"] = rows
    del model, cache
    torch.cuda.empty_cache()


def time_quantized(report: Report) -> None:
    import torch

    from benchmarks.gpu.model_times import llama_8b, new_cache, quantized_step_times
    from common.model.tuning import tune_kernels
    from kernels.gpu.tuning import Tuner, device_file, launch_seconds

    found = {}
    plain = {row["name"]: row for row in report.details.get("model times", [])}
    for quantization in ("int8", "fp8"):
        model = llama_8b(quantization=quantization)
        cache = new_cache(model)
        tune_kernels(model, cache, 64, 2048, Tuner(device_file(), launch_seconds))
        rows = quantized_step_times(model, cache, report.details["ceilings object"])
        for row in rows:
            note = f"over floor {row['over floor']:.2f}"
            if row["name"] in plain:
                note += f", of bf16 {row['seconds'] / plain[row['name']]['seconds']:.2f}"
            report.row(
                f"8B {quantization} {row['name']}", f"{float(row['seconds']) * 1e3:.2f} ms", note
            )
        found[quantization] = rows
        del model, cache
        torch.cuda.empty_cache()
    report.details["quantized times"] = found


def time_peer(report: Report) -> None:
    import torch

    from benchmarks.gpu.peer import (
        continuous_batching_tokens_s,
        generate_tokens_s,
        transformers_model,
    )

    ours = {row["name"]: row for row in report.details.get("model times", [])}
    model = transformers_model()
    found = {}
    for num_seqs in (1, 64):
        rate = generate_tokens_s(model, num_seqs, 1024, 33)
        found[f"generate, batch {num_seqs}"] = rate
        step = ours.get(f"decode, batch {num_seqs}")
        note = f"ours {num_seqs / step['seconds'] / rate:.2f} x" if step else ""
        report.row(f"transformers generate, batch {num_seqs}", f"{rate:.0f} tokens/s", note)
    report.details["transformers"] = found
    rate = continuous_batching_tokens_s(model, 64, 1024, 64)
    found["continuous batching, 64"] = rate
    report.row("transformers continuous batching, 64", f"{rate:.0f} tokens/s")
    del model
    torch.cuda.empty_cache()


def serve(report: Report) -> None:
    from benchmarks.gpu.served import serve_pair

    for name, value, note in serve_pair(ROOT, report.left_s()):
        report.row(name, value, note)
        report.num_failed += note.startswith("FAILED")


PARTS: dict[str, Callable[[Report], None]] = {
    "kernels": check_kernels,
    "floors": measure_floors,
    "times": time_kernels,
    "model": time_model,
    "quantized": time_quantized,
    "peer": time_peer,
    "serve": serve,
}


def install(wheels: Path) -> None:
    """What is missing, from the directory alone; what is there already stays as it is."""
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", *files]
    subprocess.run(command, check=True, timeout=120)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("gpu_check"), help="directory")
    parser.add_argument("--wheels", type=Path, help="directory of wheels to install first")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    arguments = parser.parse_args()
    unknown = set(arguments.only.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}")
    if arguments.wheels:
        install(arguments.wheels)
    import torch

    if not torch.cuda.is_available():
        print("gpu_check: torch sees no GPU here; nothing was checked")
        return 0
    report = Report()
    report.details["device"] = torch.cuda.get_device_name()
    report.details["versions"] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for name in ("floors", *[part for part in arguments.only.split(",") if part != "floors"]):
        if report.left_s() < 30:
            report.row(name, "left out", "no time left")
            continue
        print(f"{name} ({time.monotonic() - report.began:.0f} s)", flush=True)
        try:
            PARTS[name](report)
        except Exception as problem:
            traceback.print_exc()
            report.num_failed += 1
            report.row(name, "FAILED", f"{type(problem).__name__}: {problem}"[:150])
    return finish(report, arguments.out)


def finish(report: Report, out: Path) -> int:
    report.details.pop("ceilings object", None)
    out.mkdir(parents=True, exist_ok=True)
    table = [list(row) for row in report.rows]
    text = json.dumps({**report.details, "table": table}, indent=1, default=str)
    (out / "gpu_check.json").write_text(text + "\n")
    width = max((len(name) for name, _, _ in report.rows), default=0)
    print(f"\n{report.details['device']}, {report.details['versions']}")
    for name, value, note in report.rows:
        print(f"{name:{width}}  {value:>16}  {note}".rstrip())
    print(f"{report.num_failed} failed, {time.monotonic() - report.began:.0f} s")
    return 1 if report.num_failed else 0


if __name__ == "__main__":
    sys.exit(main())
