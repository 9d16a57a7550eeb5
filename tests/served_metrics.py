"""The metrics of a process, read as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families


@dataclass(frozen=True)
class Served:
    """One response of `/metrics`: kinds and labels by the name of the metric, values by that of the series."""

    kinds: Mapping[str, str]
    labels: Mapping[str, frozenset[str]]
    values: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def value(self, series: str, **labels: str) -> float:
        """The sum of the series of this name that have these labels; 0 without one."""
        wanted = set(labels.items())
        return sum(value for (name, has), value in self.values.items() if name == series and wanted <= has)


def read(text: str) -> Served:
    """Counters have their full names, with `_total`."""
    kinds: dict[str, str] = {}
    labels: dict[str, frozenset[str]] = {}
    values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kinds[name] = family.type
        for sample in family.samples:
            labels[name] = frozenset(sample.labels) - {"le"}
            values[sample.name, frozenset(sample.labels.items())] = sample.value
    return Served(kinds, labels, values)


def ask(port: int) -> Served:
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return read(answer.text)
