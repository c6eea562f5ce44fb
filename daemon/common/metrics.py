"""Every counter of the service, declared in one place.

Owns the names, the help texts and the registry. Knows nothing of who counts. Nothing is labelled by source or by
client: a client chooses those names, and could make as many series as it likes.

Three kinds are not counted but read when somebody asks: ages, which grow while nothing happens (`set_function` of a
gauge); what is still going on (`Reading`); and what follows from other counters (`_Drops`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_KINDS = ("final", "partial")
_MODELS = ("student", "teacher")


class Declared(NamedTuple):
    """name: as a scrape has it; of a histogram without its `_bucket`, `_sum` and `_count`. kind: Prometheus' word."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Reading(Collector):
    """A counter whose value somebody else has: it is asked for at each scrape."""

    def __init__(self, name: str, help: str) -> None:
        self._name = name
        self._help = help
        self._read: Callable[[], float] = lambda: 0.0

    def set_function(self, read: Callable[[], float]) -> None:
        """`read` never decreases."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._help, self._read())


class _Drops(Collector):
    """All that was given up, of whatever kind, beside its cause: counters that are counted elsewhere, side by side."""

    declared = Declared(
        "whisperd_drops_total",
        "counter",
        ("what", "cause"),
        "What was given up, and why; most causes have a counter of their own too",
    )

    def __init__(self, causes: Mapping[tuple[str, str], Counter]) -> None:
        self._causes = causes

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(self.declared.name, self.declared.help, labels=self.declared.labels)
        for labels, counter in self._causes.items():
            samples = next(iter(counter.collect())).samples
            family.add_metric(labels, sum(each.value for each in samples if each.name.endswith("_total")))
        yield family


class GpuMemory(NamedTuple):
    """Bytes. held: taken from the device. used: the part of it that holds something."""

    used: float
    held: float
    total: float


class _Gpus(Collector):
    """Where there is no GPU in use there is no series."""

    declared = Declared(
        "whisperd_gpu_memory_bytes",
        "gauge",
        ("device", "kind"),
        "Only of GPUs in use: what is filled (used), what the service holds (held), and what there is (total)",
    )

    def __init__(self) -> None:
        self.read: Callable[[], Mapping[str, GpuMemory]] = dict

    def collect(self) -> Iterable[Metric]:
        devices = self.read()
        if not devices:
            return
        family = GaugeMetricFamily(self.declared.name, self.declared.help, labels=self.declared.labels)
        for device, memory in devices.items():
            for kind, value in memory._asdict().items():
                family.add_metric((device, kind), value)
        yield family


class Metrics:
    """One registry of its own, so that several services may live in one process.

    Attributes:
        declared: all that a scrape may hold, but what the library says of the process.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        declared = self.declared = [_Drops.declared, _Gpus.declared]

        def counter(name: str, help: str, *labels: str) -> Counter:
            declared.append(Declared(f"whisperd_{name}_total", "counter", labels, help))
            return Counter(f"whisperd_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            declared.append(Declared(f"whisperd_{name}", "gauge", labels, help))
            return Gauge(f"whisperd_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            declared.append(Declared(f"whisperd_{name}", "histogram", (), help))
            return Histogram(f"whisperd_{name}", help, buckets=buckets, registry=registry)

        def reading(name: str, help: str) -> Reading:
            declared.append(Declared(f"whisperd_{name}_total", "counter", (), help))
            made = Reading(f"whisperd_{name}", help)
            registry.register(made)
            return made

        ProcessCollector(registry=registry)  # memory, descriptors, CPU time
        self.gpus = _Gpus()
        registry.register(self.gpus)

        self.ready = gauge("ready", "1 while /readyz says so")
        self.build = gauge(
            "build_info", "Always 1; the labels say what runs", "version", "student", "teacher", "device"
        )
        self.streams_open = gauge("streams_open", "Streams that are open, or whose finals are still to come")
        self.streams = counter("streams", "Streams that were opened")
        self.streams_waiting = gauge("streams_waiting", "Streams whose connection dropped: they wait to be resumed")
        self.streams_resumed = counter("streams_resumed", "Times that a client went on with its stream")
        self.streams_expired = counter("streams_expired", "Streams that waited, and whose client did not come back")
        self.client_errors = counter("client_errors", "Faults of clients, by the code they were told", "code")
        self.errors = counter("errors", "Faults of the service itself, by the code that clients were told", "code")
        self.connections_refused = counter(
            "connections_refused",
            "Connections that had to go before they were served, for others or for descriptors",
            "reason",
        )
        self.slowed_seconds = counter(
            "slowed_seconds", "How long clients that send too many messages were not read, in all"
        )
        self.accept_failures = counter(
            "accept_failures", "Times that a connection had to wait: no file descriptor was left"
        )
        self.wyoming_clients = gauge("wyoming_clients", "Connections to the Wyoming port")
        self.audio_seconds = counter("audio_seconds", "Audio received")
        self.voiced_seconds = counter("voiced_seconds", "Audio received that voice detection called speech")
        self.muted_seconds = counter(
            "muted_seconds", "Audio received of sources that are switched off: not listened to"
        )
        self.backpressure = counter("backpressure", "Times that reading a stream paused until its finals caught up")
        self.backpressure_seconds = counter(
            "backpressure_seconds", "How long reading streams paused for their finals, in all"
        )
        self.microphone_lost_seconds = counter(
            "microphone_lost_seconds", "Microphone audio lost: nobody took it in time"
        )
        self.microphones_open = gauge("microphones_open", "Microphones that are open")
        self.microphone_reopened = counter("microphone_reopened", "Times that the microphone had to be opened again")

        self.reloads = counter("reloads", "Times that the settings were read again", "outcome")

        self.jobs = counter("jobs", "Jobs run", "kind")
        self.jobs_waiting = gauge("jobs_waiting", "Streams that wait for the engine", "kind")
        self.jobs_oldest = gauge(
            "jobs_oldest_seconds", "For how long the stream that waits longest for the engine has waited", "kind"
        )
        self.job_failures = counter("job_failures", "Jobs that failed")
        self.batches_halved = counter(
            "batches_halved", "Batches that did not fit into memory, and were run again in halves"
        )
        self.batch_size = histogram("batch_size", "Jobs run at once", _BATCHES)
        self.batch_seconds = histogram("batch_seconds", "How long the engine took for a batch", _SECONDS)
        self.engines = gauge("engines", "Engines, one a device")
        self.engine_busy_seconds = reading(
            "engine_busy_seconds", "How long the engines have worked in all, the batches that run now included"
        )
        self.tokens = counter("tokens", "Tokens of all results")
        self.draft_tokens = counter("draft_tokens", "Tokens offered as drafts, by the model that checked them", "model")
        self.draft_tokens_accepted = counter(
            "draft_tokens_accepted", "Tokens taken over from drafts: not decoded again", "model"
        )
        self.passes = counter("passes", "Decoder passes", "model")
        self.graphs = gauge("graphs", "CUDA graphs that were captured before the service was ready")
        self.graphs_missing = gauge("graphs_missing", "CUDA graphs that did not fit into memory")
        self.graphs_seconds = gauge("graphs_seconds", "Seconds that capturing took, of all devices")
        self.graphs_bytes = gauge("graphs_bytes", "Memory that the graphs hold")
        self.canary_failures = counter("canary_failures", "Canary decodes that failed")

        self.partials = counter("partials", "Partials published")
        self.partial_lag = histogram(
            "partial_lag_seconds", "From the newest sample a partial heard to its publishing", _SECONDS
        )
        self.finals = counter("finals", "Finals published", "model")
        self.final_latency = histogram(
            "final_latency_seconds", "From the end of speech to the final's publishing", _SECONDS
        )
        self.partials_thinned = counter("partials_thinned", "Partials replaced before a subscriber took them")
        self.subscribers = gauge("subscribers", "Subscribers, streams' own clients included")
        self.subscribers_dropped = counter("subscribers_dropped", "Subscribers disconnected: too far behind")

        self.mqtt_connected = gauge("mqtt_connected", "1 while connected to the broker")
        self.mqtt_waiting = gauge("mqtt_waiting_finals", "Finals that wait for the broker")
        self.mqtt_waiting_bytes = gauge("mqtt_waiting_bytes", "Bytes of the finals that wait for the broker")
        self.mqtt_oldest = gauge("mqtt_oldest_final_seconds", "For how long the oldest final has waited for the broker")
        self.mqtt_dropped = counter("mqtt_dropped_finals", "Finals dropped: the broker was away for too long")
        self.mqtt_expired = counter("mqtt_expired_finals", "Finals dropped: they had waited for too long")
        self.mqtt_refused = counter("mqtt_refused", "Messages that the broker refused: its access rules, mostly")
        self.mqtt_too_big = counter(
            "mqtt_too_big", "Messages larger than the broker takes, or that cost the connection: shortened or given up"
        )
        self.mqtt_bad_commands = counter(
            "mqtt_bad_commands", "Commands that were ignored: neither ON nor OFF, or for no source"
        )
        self.mqtt_spool_on_disk = gauge(
            "mqtt_spool_on_disk", "1 while what waits for the broker would outlive a restart"
        )
        self.mqtt_spool_errors = counter(
            "mqtt_spool_errors", "Times that the spool's file could not be read or written"
        )
        self.mqtt_spool_damaged = counter(
            "mqtt_spool_damaged", "Rows of the spool that were damaged, and put aside in its file"
        )
        self.mqtt_connections = counter("mqtt_connections", "Connections made to the broker")
        registry.register(self._drops())
        self._begin_at_zero()

    def _drops(self) -> _Drops:
        return _Drops(
            {
                ("partial", "newer_came_first"): self.partials_thinned,
                ("final", "mqtt_queue_full"): self.mqtt_dropped,
                ("final", "mqtt_too_old"): self.mqtt_expired,
                ("final", "mqtt_damaged"): self.mqtt_spool_damaged,
                ("message", "mqtt_refused"): self.mqtt_refused,
                ("message", "mqtt_too_big"): self.mqtt_too_big,
                ("job", "failed"): self.job_failures,
                ("subscriber", "too_slow"): self.subscribers_dropped,
                ("connection", "refused"): self.connections_refused,
            }
        )

    def _begin_at_zero(self) -> None:
        """What is there from the start can be divided by, and its first event is an increase."""
        for each in (self.jobs, self.jobs_waiting, self.jobs_oldest):
            for kind in _KINDS:
                each.labels(kind)
        for counted in (self.passes, self.draft_tokens, self.draft_tokens_accepted, self.finals):
            for model in _MODELS:
                counted.labels(model)
        for outcome in ("taken", "kept"):
            self.reloads.labels(outcome)

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)
