"""The dashboard asks for what there is: each query, parsed, against a scrape of a real process that served streams."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from harness import broker, client, process, speech
from scrape import Scrape, read, scrape

from daemon.common.metrics import ClusterUse, GpuMemory, Metrics, ReplicaUse
from daemon.engines import gpu_memory

ROOT = Path(__file__).parent.parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "config" / "grafana.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGET_LABELS = {"instance", "job"}
"""Those that Prometheus itself gives to all that it scrapes."""


def queries() -> Iterator[tuple[str, str]]:
    """Each expression, beside whose it is."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for each in DASHBOARD["annotations"]["list"]:
        yield each["name"], each["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if match := re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", "")):
            yield variable["name"], f"count by ({match[2]}) ({match[1]})"


def parsed(expression: str) -> promql_parser.Expr:
    """As Grafana asks it, its variables filled in."""
    filled = expression.replace("$__rate_interval", "1m").replace("$instance", ".*")
    assert "$" not in filled, f"a variable that nobody fills in: {filled}"
    expr: promql_parser.Expr = promql_parser.parse(filled)
    return expr


def nodes(expression: promql_parser.Expr) -> list[promql_parser.Expr]:
    found: list[promql_parser.Expr] = []

    def visit(node: promql_parser.Expr) -> bool:
        found.append(node)
        return True

    promql_parser.walk(expression, visit)
    return found


def missing(expression: str, seen: Scrape) -> list[str]:
    """What `expression` names and `seen` does not have."""
    parts = nodes(parsed(expression))
    selectors = [node for node in parts if isinstance(node, promql_parser.VectorSelector)]
    assert selectors, f"it asks for nothing: {expression}"
    trouble = []
    for selector in selectors:
        name = selector.name
        assert name is not None
        if name not in seen.names:
            trouble.append(f"no metric {name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in seen.labels(name) | TARGET_LABELS:
                trouble.append(f"{name} has no label {matcher.name}")
            elif matcher.op == promql_parser.MatchOp.Equal and matcher.value not in values(seen, name, matcher.name):
                trouble.append(f"{name} has no series with {matcher.name}={matcher.value}")
    known = TARGET_LABELS.union(*(seen.labels(selector.name or "") for selector in selectors))
    return trouble + [f"none of it has the label {label}" for label in grouping(parts) if label not in known]


def values(seen: Scrape, name: str, label: str) -> set[str]:
    return {dict(labels).get(label, "") for each, labels in seen.series if each == name}


def grouping(parts: list[promql_parser.Expr]) -> set[str]:
    """The labels that aggregations and joins name."""
    found: set[str] = set()
    for node in parts:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.update(node.modifier.labels)
        if isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            found.update(node.modifier.matching.labels if node.modifier.matching is not None else [])
            found.update(node.modifier.group_labels or [])
    return found


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Scrape:
    """Of a process with the shipped models that has served a stream, and seen a fault of a client."""
    import asyncio

    folder = tmp_path_factory.mktemp("dashboard")

    async def use(url: str) -> None:
        async with client(url, "/v1/stream?source=kitchen") as mine:
            await mine.play(speech())
            await mine.say(type="stop")
            await mine.rest()
            assert mine.of("final")
        async with client(url) as mine:
            await mine.ws.send("{")
            await mine.rest()

    with (
        broker(folder) as mosquitto,
        process(folder, {"mqtt": {"host": "127.0.0.1", "port": mosquitto.port}}) as daemon,
    ):
        asyncio.run(use(daemon.url))
        return scrape(daemon.url)


def with_what_seldom_is(seen: Scrape) -> Scrape:
    """And what a healthy process on a machine without a GPU does not have: its own errors, a GPU, and a cluster. Told
    by the same code, with a count and answers made by hand."""
    metrics = Metrics()
    metrics.errors.labels("internal").inc()
    metrics.gpus.read = lambda: {"cuda:0": GpuMemory(1, 2, 3)}
    metrics.cluster.read = lambda: ClusterUse(2, 1, {"a": ReplicaUse(1, 1, 0.1, 0.1)})
    seldom = {"whisperd_errors_total", "whisperd_gpu_memory_bytes"}
    told = read(metrics.text().decode()).series.items()
    more = {key: value for key, value in told if key[0] in seldom or key[0].startswith("whisperd_cluster_")}
    return Scrape({**more, **seen.series})


def test_every_query_is_answered_by_a_real_scrape(live: Scrape) -> None:
    seen = with_what_seldom_is(live)
    assert {title: trouble for title, expr in queries() if (trouble := missing(expr, seen))} == {}
    if not gpu_memory.memory():
        assert "whisperd_gpu_memory_bytes" not in live.names


def test_all_that_is_counted_is_shown_or_left_out_on_purpose(live: Scrape) -> None:
    asked = {
        node.name
        for _, expr in queries()
        for node in nodes(parsed(expr))
        if isinstance(node, promql_parser.VectorSelector)
    }
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked if name is not None}
    left_out = {
        "whisperd_jobs_total",  # batch sizes and finals say it
        "whisperd_partials_total",  # their lag says more
        "whisperd_partial_spacing",  # only with models that hear one window; the lag shows what it is for
        "whisperd_event_loop_late_seconds",  # for benchmarks: lag and latency have it in them
        "whisperd_backpressure_total",  # its seconds are shown
        "whisperd_graphs",  # all captured before the start is over, and said in the log
        "whisperd_graphs_missing",
        "whisperd_graphs_seconds",
        "whisperd_microphone_reopened_total",  # the log says when and why
        "whisperd_models_asleep",  # only where models.unload_after is set; the log and /readyz say it
        "whisperd_models_woken_total",
        "whisperd_models_waking_seconds_total",
        "whisperd_mqtt_bad_commands_total",  # likewise
        # Among the drops.
        "whisperd_partials_thinned_total",
        "whisperd_subscribers_dropped_total",
        "whisperd_connections_refused_total",
        "whisperd_mqtt_dropped_finals_total",
        "whisperd_mqtt_expired_finals_total",
        "whisperd_mqtt_spool_damaged_total",
        "whisperd_mqtt_too_big_total",
    }
    assert {each.name for each in Metrics().declared} == (shown | left_out) - {
        n for n in shown if n.startswith("process_")
    }
    assert not shown & left_out


def test_every_panel_can_be_read_at_night() -> None:
    """Each has a description, a unit and a legend; the first row has thresholds."""
    for panel in PANELS:
        assert len(panel["description"]) > 20 or panel["type"] == "table", panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["thresholds"]["steps"], panel["title"]
        assert len(panel["targets"]) == 1 or all(target["legendFormat"] for target in panel["targets"])
    first_row = [panel for panel in PANELS if panel["gridPos"]["y"] == 1]
    assert len(first_row) == 8
    coloured = [each for each in first_row if len(each["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1]
    assert len(coloured) == 7  # the number of streams is neither good nor bad


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        cells |= mine


@pytest.mark.parametrize(
    ("expression", "trouble"),
    [
        ("whisperd_nothing", ["no metric whisperd_nothing"]),
        ('rate(whisperd_ready{zzz="x"}[1m])', ["whisperd_ready has no label zzz"]),
        ("sum by (zzz) (whisperd_ready)", ["none of it has the label zzz"]),
        ('1 + sum(whisperd_jobs_waiting{kind="zzz"})', ["whisperd_jobs_waiting has no series with kind=zzz"]),
        ('whisperd_jobs_waiting{kind="final"} / on (kind) whisperd_jobs_waiting', []),
        ("whisperd_ready / on (zzz) whisperd_ready", ["none of it has the label zzz"]),
        ("histogram_quantile(0.5, sum by (le) (rate(whisperd_batch_size_bucket[1m])))", []),
    ],
)
def test_a_query_that_asks_for_what_is_not_there_is_found(expression: str, trouble: list[str]) -> None:
    assert missing(expression, read(Metrics().text().decode())) == trouble


def test_a_query_that_is_none_is_found() -> None:
    with pytest.raises(ValueError, match=r"unclosed|unexpected|invalid|parse|syntax"):
        parsed("sum(whisperd_ready")
