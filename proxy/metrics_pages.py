"""Several workers' metrics pages as one, as if one process had served everybody.

Counters and histograms are added up, and so are gauges, but those of what every worker sees alike.
A counter must not fall when a worker dies: `counts_of` is what its successor starts from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_SEEN_BY_ALL = frozenset(("instances",))  # names without the prefix
_COUNTING = frozenset(("counter", "histogram", "summary"))


def add_pages(pages: Sequence[str]) -> str:
    """Prometheus text as one valid page: each family stays in one piece."""
    heads: dict[str, list[str]] = {}
    families: dict[str, dict[str, float]] = {}
    for page in pages:
        for family, kind, head, sample, value in _lines(page):
            samples = families.setdefault(family, {})
            if head:
                lines = heads.setdefault(family, [])
                if head not in lines:
                    lines.append(head)
            elif sample not in samples:
                samples[sample] = value
            elif kind not in _COUNTING and _is_seen_by_all(family):
                samples[sample] = max(samples[sample], value)
            else:
                samples[sample] += value
    lines = []
    for family, samples in families.items():
        lines += heads.get(family, ())
        lines += [f"{sample} {_shown(value)}" for sample, value in samples.items()]
    return "\n".join(lines) + "\n" if lines else ""


def counts_of(page: str) -> str:
    """Only what may never fall."""
    lines = [
        head or f"{sample} {_shown(value)}"
        for _, kind, head, sample, value in _lines(page)
        if kind in _COUNTING
    ]
    return "\n".join(lines) + "\n" if lines else ""


def _lines(page: str) -> Iterator[tuple[str, str, str, str, float]]:
    """(family, its type, head line, "", 0) or (family, its type, "", sample, value). A family's
    help comes before its type, so the type is looked for first."""
    found = [line for line in page.splitlines() if line]
    kinds = dict(line.split(" ", 3)[2:] for line in found if line.startswith("# TYPE "))
    family = ""
    for line in found:
        if line.startswith("# "):
            family = line.split(" ", 3)[2]
            yield family, kinds.get(family, ""), line, "", 0.0
        else:  # a label's value may hold any character, a number holds no space
            sample, _, value = line.rpartition(" ")
            yield family, kinds.get(family, ""), "", sample, float(value)


def _is_seen_by_all(family: str) -> bool:
    return family.rpartition(":")[2] in _SEEN_BY_ALL or family.endswith("_created")


def _shown(value: float) -> str:
    return repr(value).replace("inf", "Inf").replace("nan", "NaN")
