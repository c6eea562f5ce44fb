"""A scrape of `/metrics`, as Prometheus would make it: read by the library's own parser."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families
from test_websocket import fetch


@dataclass(frozen=True)
class Scrape:
    """Each series, by its name and labels."""

    series: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """Of `whisperd_<name>` with just these labels; 0 where nothing was counted yet."""
        return self.series.get((f"whisperd_{name}", frozenset(labels.items())), 0.0)

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.series}

    def labels(self, name: str) -> set[str]:
        """Those that the series of this whole name have."""
        return {label for each, labels in self.series if each == name for label, _ in labels}


def read(text: str) -> Scrape:
    families = text_string_to_metric_families(text)
    samples = [sample for family in families for sample in family.samples]
    return Scrape({(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})


def scrape(url: str) -> Scrape:
    """Over the wire."""
    status, text, _ = fetch(url, "/metrics")
    assert status == 200
    return read(text)
