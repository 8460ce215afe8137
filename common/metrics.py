"""Counters, gauges and histograms in Prometheus text form. One registry per app, nothing global.

Every metric carries `model_name` and `engine` besides its own labels, as vLLM's do, so that known
dashboards need only another prefix. Label values come from fixed sets, never from clients.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from common.recent import Bar, Distribution, Rate, bars

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
TOKENS = tuple(float(step * 10**power) for power in range(5) for step in (1, 2, 5))

Labels = tuple[str, ...]
Value = Callable[[], float]
LabelledValues = Callable[[], Mapping[Labels, float]]


class CounterMetric:
    """With labels, `labels("a").inc()`; without, `inc()`."""

    def __init__(self, metric: Counter, constant: tuple[str, str]) -> None:
        self._metric = metric
        self._constant = constant

    def labels(self, *values: str, model_name: str = "") -> Counter:
        """`model_name`: where one app serves several models, or learns their names late."""
        default, engine = self._constant
        return self._metric.labels(model_name or default, engine, *values)

    def inc(self, amount: float = 1) -> None:
        self._metric.labels(*self._constant).inc(amount)


class HistogramMetric:
    """With labels, `labels("a").observe(x)`; without, `observe(x)`."""

    def __init__(self, metric: Histogram, constant: tuple[str, str]) -> None:
        self._metric = metric
        self._constant = constant

    def labels(self, *values: str, model_name: str = "") -> Histogram:
        """`model_name`: where one app serves several models, or learns their names late."""
        default, engine = self._constant
        return self._metric.labels(model_name or default, engine, *values)

    def observe(self, amount: float) -> None:
        self._metric.labels(*self._constant).observe(amount)


class DistributionMetric:
    """A histogram whose last minute can be asked for, too."""

    def __init__(self, bounds: Sequence[float], constant: tuple[str, str], clock: Value) -> None:
        self._bounds = bounds
        self._constant = constant
        self._clock = clock
        self._found: dict[Labels, Distribution] = {}

    def labels(self, *values: str, model_name: str = "") -> Distribution:
        """Keep what this gives where tokens pass: looking it up costs more than `observe`."""
        default, engine = self._constant
        key = (model_name or default, engine, *values)
        if key not in self._found:
            self._found[key] = Distribution(self._bounds, self._clock())
        return self._found[key]

    def recent(self, *values: str) -> list[Bar]:
        """The last minute, over all models; `percentiles_of` reads it."""
        chosen = [each for key, each in self._found.items() if key[2:] == values]
        return bars(chosen, self._clock())

    def items(self) -> Iterable[tuple[Labels, Distribution]]:
        return self._found.items()


class RateMetric:
    """A counter whose pace in the last minute can be asked for, too."""

    def __init__(self, constant: tuple[str, str], clock: Value) -> None:
        self._constant = constant
        self._clock = clock
        self._found: dict[str, Rate] = {}

    def labels(self, model_name: str = "") -> Rate:
        """Keep what this gives where tokens pass."""
        name = model_name or self._constant[0]
        if name not in self._found:
            self._found[name] = Rate(self._clock())
        return self._found[name]

    def per_second(self) -> float:
        """Over all models."""
        now = self._clock()
        return sum(rate.per_second(now) for rate in self._found.values())

    def items(self) -> Iterable[tuple[Labels, Rate]]:
        return (((name, self._constant[1]), rate) for name, rate in self._found.items())


class Metrics:
    """Names are given without prefix; counters get `_total` on the wire."""

    def __init__(self, prefix: str = "xpyd:", model_name: str = "", engine: str = "0") -> None:
        """`prefix` with or without its colon."""
        self._prefix = prefix if prefix.endswith((":", "_")) or not prefix else f"{prefix}:"
        self._constant_names = ("model_name", "engine")
        self._constant = (model_name, engine)
        self._registry = CollectorRegistry(auto_describe=False)

    def gauge(self, name: str, help: str, fn: Value) -> None:
        """`fn` is asked at each scrape, in the event loop's thread."""
        self.gauges(name, help, lambda: {(): fn()})

    def gauges(self, name: str, help: str, fn: LabelledValues, labels: Labels = ()) -> None:
        """Several gauges of one name: `fn` gives a value for each tuple of label values."""
        self._register(GaugeMetricFamily, name, help, fn, labels)

    def counter_from(self, name: str, help: str, fn: Value) -> None:
        """A count that somebody else keeps; `fn` must never fall."""
        self._register(CounterMetricFamily, name, help, lambda: {(): fn()}, ())

    def counters_from(self, name: str, help: str, fn: LabelledValues, labels: Labels) -> None:
        self._register(CounterMetricFamily, name, help, fn, labels)

    def counter(self, name: str, help: str, labels: Labels = ()) -> CounterMetric:
        names = (*self._constant_names, *labels)
        metric = Counter(self._prefix + name, help, names, registry=self._registry)
        if not labels and self._constant[0]:
            metric.labels(*self._constant)  # so that it shows as 0 from the start
        return CounterMetric(metric, self._constant)

    def histogram(
        self,
        name: str,
        help: str,
        buckets: Sequence[float] = SECONDS,
        labels: Labels = (),
    ) -> HistogramMetric:
        names = (*self._constant_names, *labels)
        metric = Histogram(
            self._prefix + name, help, names, buckets=buckets, registry=self._registry
        )
        if not labels and self._constant[0]:
            metric.labels(*self._constant)
        return HistogramMetric(metric, self._constant)

    def distribution(
        self,
        name: str,
        help: str,
        buckets: Sequence[float] = SECONDS,
        labels: Labels = (),
        clock: Value = time.monotonic,
    ) -> DistributionMetric:
        """As `histogram`, cheap enough for every token."""
        metric = DistributionMetric(buckets, self._constant, clock)
        if not labels and self._constant[0]:
            metric.labels()
        self._register_histogram(name, help, labels, metric.items)
        return metric

    def distribution_from(self, name: str, help: str, found: Distribution) -> None:
        """A histogram that somebody else keeps."""
        self._register_histogram(name, help, (), lambda: [(self._constant, found)])

    def rate(self, name: str, help: str, clock: Value = time.monotonic) -> RateMetric:
        """As `counter`, cheap enough for every token."""
        metric = RateMetric(self._constant, clock)
        if self._constant[0]:
            metric.labels()

        def read() -> Iterator[CounterMetricFamily]:
            family = CounterMetricFamily(full_name, help, labels=self._constant_names)
            for values, found in metric.items():
                family.add_metric(values, found.count)
            yield family

        full_name = self._prefix + name
        self._registry.register(_Read(read))
        return metric

    def render(self) -> bytes:
        """The page that Prometheus reads (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)

    def _register_histogram(
        self,
        name: str,
        help: str,
        labels: Labels,
        items: Callable[[], Iterable[tuple[Labels, Distribution]]],
    ) -> None:
        def read() -> Iterator[HistogramMetricFamily]:
            family = HistogramMetricFamily(full_name, help, labels=names)
            for values, found in items():
                bars = [(_bound(end), float(count)) for end, count in found.buckets()]
                family.add_metric(values, bars, found.total)
            yield family

        full_name = self._prefix + name
        names = (*self._constant_names, *labels)
        self._registry.register(_Read(read))

    def _register(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        help: str,
        fn: LabelledValues,
        labels: Labels,
    ) -> None:
        full_name = self._prefix + name
        names = (*self._constant_names, *labels)
        self._registry.register(_Computed(family, full_name, help, names, self._constant, fn))


class _Read(Collector):
    """Reads a metric that we keep ourselves."""

    def __init__(self, read: Callable[[], Iterable[Metric]]) -> None:
        self._read = read

    def describe(self) -> Iterable[Metric]:
        """Lets the registry refuse a second metric of this name."""
        return self._read()

    def collect(self) -> Iterable[Metric]:
        return self._read()


def _bound(end: float) -> str:
    return "+Inf" if math.isinf(end) else repr(float(end))


class _Computed(Collector):
    """Asks a function at each scrape. One that raises leaves its metric out of that scrape."""

    def __init__(
        self,
        family: type[GaugeMetricFamily] | type[CounterMetricFamily],
        name: str,
        help: str,
        label_names: Labels,
        constant: Labels,
        fn: LabelledValues,
    ) -> None:
        self._family = family
        self._name = name
        self._help = help
        self._label_names = label_names
        self._constant = constant
        self._fn = fn

    def describe(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """Lets the registry refuse a second metric of this name."""
        yield self._family(self._name, self._help, labels=self._label_names)

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        metric = self._family(self._name, self._help, labels=self._label_names)
        try:
            values = self._fn()
        except Exception:
            log.exception("metric %s cannot be computed", self._name)
            return
        for labels, value in values.items():
            if not math.isnan(value):
                metric.add_metric((*self._constant, *labels), value)
        yield metric
