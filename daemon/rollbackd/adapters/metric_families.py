"""Families of metrics as plain numbers. Prometheus's own client writes them out, and is told nothing before it asks.

Its counters and histograms can't be set, so they couldn't go on from where they were before a restart, and each of their
children weighs a kilobyte or more; here it is a key and a number.
"""

import time
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

T = TypeVar("T")
Labels = tuple[str, ...]
Bucket = tuple[str, float] | tuple[str, float, Exemplar]
# Between a key's parts in the store; no label value that we accept has it.
SEPARATOR = "\x1f"
SUM = "sum"


class Family(Collector, Generic[T]):
    """One metric: a value for each combination of label values. Values are immutable, so that `collect` may run in
    another thread than the one that counts. `changes` grows with each change, so that what was written may be kept.
    """

    def __init__(self, name: str, text: str, labels: Labels = ()) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.values: dict[Labels, T] = {}
        self.changes = 0
        # Of targets and hooks that aren't configured now: should they come back, they go on from here.
        self._gone: dict[Labels, T] = {}

    @abstractmethod
    def zero(self) -> T:
        """What a child begins with."""

    @abstractmethod
    def collect(self) -> Iterable[Metric]:
        """The whole family, as Prometheus's client wants it."""

    def expect(self, children: Collection[Labels]) -> None:
        """Have exactly these children, new ones at zero."""
        known = {**self._gone, **self.values}
        self.values = {labels: known.pop(labels, None) or self.zero() for labels in children}
        self._gone = known
        self.changes += 1

    def snapshot(self) -> list[tuple[Labels, T]]:
        """All children at one moment."""
        return list(self.values.items())


class Gauge(Family[float]):
    """A value that is as it is now; an optional one is absent where there is none."""

    def __init__(self, name: str, text: str, labels: Labels = (), *, optional: bool = False) -> None:
        super().__init__(name, text, labels)
        self._optional = optional

    def expect(self, children: Collection[Labels]) -> None:
        if not self._optional:
            super().expect(children)
            return
        expected = set(children)
        self.values = {labels: value for labels, value in self.values.items() if labels in expected}
        self.changes += 1

    def zero(self) -> float:
        return 0.0

    def set(self, labels: Labels, value: float | None) -> None:
        """Set it; None takes it away."""
        if self.values.get(labels) == value:
            return
        if value is None:
            del self.values[labels]
        else:
            self.values[labels] = value
        self.changes += 1

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in self.snapshot():
            family.add_metric(labels, value)
        return [family]


class Total(Family[T]):
    """A metric that only grows. What was added since the last save waits in `unsaved`, by a key of the store; without
    that it begins anew with each process.
    """

    def __init__(self, name: str, text: str, labels: Labels, unsaved: dict[str, float] | None) -> None:
        super().__init__(name, text, labels)
        self._unsaved = unsaved

    @abstractmethod
    def restore(self, parts: Labels, amount: float) -> None:
        """Go on from a total of the store; `parts` are its key without the name."""

    def _replace(self, labels: Labels, change: Callable[[T], T]) -> None:
        """Change a child; of what isn't configured it is kept, and not shown."""
        values = self.values if labels in self.values else self._gone
        values[labels] = change(values.get(labels, self.zero()))
        self.changes += 1

    def _note(self, parts: Labels, amount: float) -> None:
        if self._unsaved is None:
            return
        key = SEPARATOR.join((self.name, *parts))
        self._unsaved[key] = self._unsaved.get(key, 0.0) + amount


class Counter(Total[float]):
    """How often something happened."""

    def zero(self) -> float:
        return 0.0

    def add(self, labels: Labels, amount: float = 1.0) -> None:
        """Count; what isn't configured any more is counted too, and not shown."""
        self._replace(labels, lambda known: known + amount)
        self._note(labels, amount)

    def restore(self, parts: Labels, amount: float) -> None:
        self._replace(parts, lambda known: known + amount)

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in self.snapshot():
            family.add_metric(labels, value)
        return [family]


@dataclass(frozen=True, slots=True)
class Distribution:
    """How many observations fell into each bucket (not those below it too), their sum, and one example for each bucket."""

    counts: tuple[int, ...]
    total: float
    examples: Mapping[int, Exemplar]


class Histogram(Total[Distribution]):
    """How long, or how much, each time."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Labels,
        buckets: tuple[float, ...],
        unsaved: dict[str, float] | None,
    ) -> None:
        super().__init__(name, text, labels, unsaved)
        self._bounds = buckets
        self._names = (*map(str, buckets), "+Inf")
        self._zero = Distribution((0,) * len(self._names), 0.0, {})

    def zero(self) -> Distribution:
        return self._zero

    def observe(self, labels: Labels, amount: float, example: Mapping[str, str] | None = None) -> None:
        """Count one observation; `example` are labels by which somebody finds it, such as a run's id."""
        bucket = bisect_left(self._bounds, amount)

        def observed(known: Distribution) -> Distribution:
            examples = known.examples
            if example is not None:
                examples = {**examples, bucket: Exemplar(dict(example), amount, round(time.time(), 3))}
            return Distribution(_added(known.counts, bucket, 1), known.total + amount, examples)

        self._replace(labels, observed)
        self._note((*labels, self._names[bucket]), 1)
        self._note((*labels, SUM), amount)

    def restore(self, parts: Labels, amount: float) -> None:
        *labels, last = parts

        def restored(known: Distribution) -> Distribution:
            if last == SUM:
                return replace(known, total=known.total + amount)
            if last not in self._names:
                return known
            return replace(known, counts=_added(known.counts, self._names.index(last), int(amount)))

        self._replace(tuple(labels), restored)

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(self.name, self.text, labels=self.labels)
        for labels, value in self.snapshot():
            family.add_metric(labels, self._buckets(value), value.total)
        return [family]

    def _buckets(self, value: Distribution) -> list[Bucket]:
        counts = enumerate(zip(self._names, accumulate(value.counts), strict=True))
        return [
            (name, float(count), value.examples[number]) if number in value.examples else (name, float(count))
            for number, (name, count) in counts
        ]


def _added(counts: tuple[int, ...], bucket: int, amount: int) -> tuple[int, ...]:
    return (*counts[:bucket], counts[bucket] + amount, *counts[bucket + 1 :])
