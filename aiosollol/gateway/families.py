"""`Family`: a metric with its samples, as plain data that can be sent, merged and written.

What counts on the hot path keeps dictionaries of its own. They become families when somebody asks,
and those become Prometheus's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from aiosollol.errors import MissingExtra

Kind = Literal["counter", "gauge", "histogram"]
Values: TypeAlias = Mapping[Any, float]
"""A value for each combination of labels: tuples of strings, as long as there are labels."""

PROCESS = "process"
"""The label that tells the processes of one gateway apart, where there are several."""


class Sample(NamedTuple):
    """suffix: what follows the family's name, such as ``_total`` or ``_bucket``."""

    suffix: str
    labels: Mapping[str, str]
    value: float


class Family(NamedTuple):
    """One metric. name: without the suffix of its samples."""

    name: str
    kind: Kind
    about: str
    samples: Sequence[Sample]


def counter(name: str, about: str, values: Values, *labels: str) -> Family:
    """A counter. `values` has one for each combination of the labels' values."""
    return Family(name, "counter", about, _samples("_total", values, labels))


def gauge(name: str, about: str, values: Values, *labels: str) -> Family:
    """A gauge. `values` has one for each combination of the labels' values."""
    return Family(name, "gauge", about, _samples("", values, labels))


def _samples(suffix: str, values: Values, labels: Sequence[str]) -> list[Sample]:
    return [
        Sample(suffix, dict(zip(labels, key, strict=True)), value) for key, value in values.items()
    ]


def merged(parts: Mapping[str, Iterable[Family]]) -> list[Family]:
    """The families of several processes as one, with a label that says whose each sample is.

    They are not summed: a process that begins anew begins at 0, and only Prometheus, which sees
    each of them over time, can tell that from a counter that went back.
    """
    found: dict[str, Family] = {}
    for process, families in parts.items():
        for family in families:
            known = found.setdefault(family.name, family._replace(samples=[]))
            assert isinstance(known.samples, list)
            known.samples.extend(
                sample._replace(labels={**sample.labels, PROCESS: process})
                for sample in family.samples
            )
    return list(found.values())


def as_data(families: Iterable[Family]) -> list[Any]:
    """For JSON."""
    return [[f.name, f.kind, f.about, [list(sample) for sample in f.samples]] for f in families]


def from_data(data: Iterable[Any]) -> list[Family]:
    """What `as_data` made."""
    return [
        Family(name, kind, about, [Sample(*sample) for sample in samples])
        for name, kind, about, samples in data
    ]


class _Collected:
    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterable[Any]:
        from prometheus_client import Metric

        for family in self._families:
            metric = Metric(family.name, family.about, family.kind)
            for sample in family.samples:
                metric.add_sample(
                    family.name + sample.suffix, dict(sample.labels), float(sample.value)
                )
            yield metric


def exposition(families: Iterable[Family], accept: str = "") -> tuple[bytes, str]:
    """The text that Prometheus reads, and its content type, by what `accept` prefers.

    Raises MissingExtra without prometheus-client.
    """
    check_extra()
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collected(families))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def check_extra() -> None:
    """Raises MissingExtra without prometheus-client."""
    try:
        import prometheus_client  # noqa: F401
    except ImportError as error:
        raise MissingExtra("the metrics endpoint", "gateway") from error
