"""Several workers' metrics pages as one: every sample says whose it is, in a label `worker`.

Nothing is added up here: a counter may be, a gauge of the fleet may not (each worker sees the same
instances); `sum without (worker) (…)` is the reader's choice.
"""

from __future__ import annotations

from collections.abc import Mapping


def merge_pages(pages: Mapping[int, str]) -> str:
    """Prometheus text, by worker number, as one valid page: each family stays in one piece."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for worker, page in sorted(pages.items()):
        family = ""
        for line in page.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                samples.setdefault(family, [])
                if line not in head:
                    head.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, worker))
    lines = [line for family in samples for line in (*heads.get(family, ()), *samples[family])]
    return "\n".join(lines) + "\n" if lines else ""


def _labelled(sample: str, worker: int) -> str:
    """`name{a="b"} 1` → `name{worker="0",a="b"} 1`; a label's value may hold any character."""
    mark = f'worker="{worker}"'
    brace, space = sample.find("{"), sample.find(" ")
    if brace == -1 or brace > space:
        return f"{sample[:space]}{{{mark}}}{sample[space:]}"
    rest = sample[brace + 1 :]
    return f"{sample[:brace]}{{{mark}{'' if rest.startswith('}') else ','}{rest}"
