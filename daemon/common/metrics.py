"""Every metric of the service, declared in one place.

Owns the names, the help texts and the registry. Knows nothing of the code that counts. No label names a source or a
client: clients choose those names, and could create any number of series.

Three kinds are not counted but read at each scrape: ages, which grow while nothing happens (`set_function` of a gauge);
work that is still going on (`Reading`); and what follows from other counters (`_Drops`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_LATE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_KINDS = ("final", "partial")
_MODELS = ("student", "teacher")


class Declared(NamedTuple):
    """A metric, as it was declared.

    Attributes:
        name: as in a scrape; that of a histogram is without its `_bucket`, `_sum` and `_count`.
        kind: Prometheus' word for its type.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


class Reading(Collector):
    """A counter whose value is kept elsewhere, and read at each scrape."""

    def __init__(self, name: str, help: str) -> None:
        self._name = name
        self._help = help
        self._read: Callable[[], float] = lambda: 0.0

    def set_function(self, read: Callable[[], float]) -> None:
        """Set the function that returns the value, which must never decrease."""
        self._read = read

    def collect(self) -> Iterable[Metric]:
        yield CounterMetricFamily(self._name, self._help, self._read())


class _Drops(Collector):
    """Everything that was given up, with its cause: counters that are counted elsewhere, side by side."""

    declared = Declared(
        "whisperd_drops_total",
        "counter",
        ("what", "cause"),
        "Everything that was dropped, by what and why; most causes also have their own counter",
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
    """The memory of a GPU, in bytes.

    Attributes:
        used: the part of `held` that holds something.
        held: what the service took from the device.
        total: what the device has.
    """

    used: float
    held: float
    total: float


class _Gpus(Collector):
    """The memory of the GPUs. Where no GPU is in use there is no series."""

    declared = Declared(
        "whisperd_gpu_memory_bytes",
        "gauge",
        ("device", "kind"),
        "Memory of the GPUs in use: allocated (used), reserved by the service (held), and in total (total)",
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


class ReplicaUse(NamedTuple):
    """What a replica of a cluster has done for this daemon.

    Attributes:
        jobs: it brought results for.
        batches: they were in.
        seconds: that its engine took.
        wire: seconds that batches were on their way there and back, or waited for it.
    """

    jobs: int = 0
    batches: int = 0
    seconds: float = 0.0
    wire: float = 0.0


class ClusterUse(NamedTuple):
    """What came of the batches that went to a cluster.

    Attributes:
        running: replicas that take batches.
        lost: batches that nothing came of, and that ran again.
        replicas: what each did, by its name.
    """

    running: int
    lost: int
    replicas: Mapping[str, ReplicaUse]


class _Cluster(Collector):
    """The replicas of a cluster. Where engines are on this machine there is no series."""

    declared = (
        Declared("whisperd_cluster_replicas", "gauge", (), "Replicas of the cluster that take batches"),
        Declared("whisperd_cluster_lost_batches_total", "counter", (),
                 "Batches that were lost with a replica or the link, and ran again"),
        Declared("whisperd_cluster_jobs_total", "counter", ("replica",), "Jobs that a replica brought results for"),
        Declared("whisperd_cluster_batches_total", "counter", ("replica",), "Batches that a replica ran"),
        Declared("whisperd_cluster_engine_seconds_total", "counter", ("replica",), "Seconds that its engine ran"),
        Declared("whisperd_cluster_wire_seconds_total", "counter", ("replica",),
                 "Seconds that batches were on their way to a replica and back, or waited for it"),
    )  # fmt: skip

    def __init__(self) -> None:
        self.read: Callable[[], ClusterUse | None] = lambda: None

    def collect(self) -> Iterable[Metric]:
        use = self.read()
        if use is None:
            return
        running, lost, *by_replica = self.declared
        yield GaugeMetricFamily(running.name, running.help, use.running)
        yield CounterMetricFamily(lost.name, lost.help, use.lost)
        for place, declared in enumerate(by_replica):
            family = CounterMetricFamily(declared.name, declared.help, labels=declared.labels)
            for name, each in use.replicas.items():
                family.add_metric((name,), each[place])
            yield family


class Metrics:
    """All metrics, in a registry of their own, so that several services can live in one process.

    Attributes:
        declared: all metrics that a scrape may contain, except what the library reports about the process.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        declared = self.declared = [_Drops.declared, _Gpus.declared, *_Cluster.declared]

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
        self.cluster = _Cluster()
        registry.register(self.cluster)

        self.ready = gauge("ready", "1 while /readyz reports ready")
        self.asleep = gauge("models_asleep", "1 while the models are put away (models.unload_after)")
        self.wakes = reading("models_woken", "Times that models were loaded again for speech")
        self.waking_seconds = reading("models_waking_seconds", "Seconds that this took, in all")
        self.build = gauge(
            "build_info", "Always 1; the labels name what runs", "version", "student", "teacher", "device"
        )
        self.streams_open = gauge("streams_open", "Streams that are open or still wait for finals")
        self.streams = counter("streams", "Streams opened")
        self.streams_waiting = gauge("streams_waiting", "Streams that wait to be resumed after a dropped connection")
        self.streams_resumed = counter("streams_resumed", "Times that a client resumed its stream")
        self.streams_expired = counter("streams_expired", "Streams whose client did not come back in time")
        self.client_errors = counter("client_errors", "Errors caused by clients, by the code sent to them", "code")
        self.errors = counter("errors", "Errors of the service itself, by the code sent to clients", "code")
        self.connections_refused = counter(
            "connections_refused",
            "Connections closed before they were served, to make room for others or to save file descriptors",
            "reason",
        )
        self.slowed_seconds = counter(
            "slowed_seconds", "Total time that reading paused for clients that send too many messages"
        )
        self.accept_failures = counter(
            "accept_failures", "Times that a connection had to wait because no file descriptor was left"
        )
        self.wyoming_clients = gauge("wyoming_clients", "Open connections to the Wyoming port")
        self.audio_seconds = counter("audio_seconds", "Audio received")
        self.voiced_seconds = counter("voiced_seconds", "Received audio that voice detection counted as speech")
        self.muted_seconds = counter(
            "muted_seconds", "Received audio that was ignored because its source is switched off"
        )
        self.backpressure = counter("backpressure", "Times that reading a stream paused until its finals caught up")
        self.backpressure_seconds = counter(
            "backpressure_seconds", "Total time that reading streams paused for their finals"
        )
        self.microphone_lost_seconds = counter(
            "microphone_lost_seconds", "Microphone audio lost because it was not read in time"
        )
        self.microphones_open = gauge("microphones_open", "Open microphones")
        self.microphone_reopened = counter("microphone_reopened", "Times that a microphone had to be reopened")

        self.reloads = counter("reloads", "Times that the settings were reloaded", "outcome")

        self.jobs = counter("jobs", "Jobs run", "kind")
        self.jobs_waiting = gauge("jobs_waiting", "Streams that wait for the engine", "kind")
        self.jobs_oldest = gauge(
            "jobs_oldest_seconds", "How long the stream that waits longest has waited for the engine", "kind"
        )
        self.job_failures = counter("job_failures", "Jobs that failed")
        self.batches_halved = counter(
            "batches_halved", "Batches that did not fit into memory and were run again in halves"
        )
        self.batch_size = histogram("batch_size", "Jobs in a batch", _BATCHES)
        self.batch_seconds = histogram("batch_seconds", "Time that the engine took for a batch", _SECONDS)
        self.engines = gauge("engines", "Engines that take batches: one per device, or per replica of a cluster")
        self.engine_busy_seconds = reading(
            "engine_busy_seconds", "Total time that the engines have worked, including batches in progress"
        )
        self.engine_restarts = reading("engine_restarts", "Engines whose process ended by itself and was started again")
        self.loop_late = histogram(
            "event_loop_late_seconds", "How late the event loop is, measured ten times a second", _LATE
        )
        self.tokens = counter("tokens", "Tokens in all results")
        self.draft_tokens = counter("draft_tokens", "Tokens offered as drafts, by the model that checked them", "model")
        self.draft_tokens_accepted = counter(
            "draft_tokens_accepted", "Draft tokens that were accepted and not decoded again", "model"
        )
        self.passes = counter("passes", "Decoder passes", "model")
        self.graphs = gauge("graphs", "CUDA graphs captured before the service was ready")
        self.graphs_missing = gauge("graphs_missing", "CUDA graphs that did not fit into memory")
        self.graphs_seconds = gauge("graphs_seconds", "Seconds that capturing the graphs took, on all devices together")
        self.graphs_bytes = gauge("graphs_bytes", "Memory that the graphs hold")
        self.canary_failures = counter("canary_failures", "Canary decodes that failed")

        self.partials = counter("partials", "Partials published")
        self.partial_lag = histogram(
            "partial_lag_seconds", "Time from the newest sample in a partial to its publication", _SECONDS
        )
        self.partial_spacing = gauge(
            "partial_spacing",
            "How many times partials.interval the partials of a stream are apart: more than 1 where models that hear "
            "their whole window each time cannot keep up",
        )
        self.partial_spacing.set(1)
        self.finals = counter("finals", "Finals published", "model")
        self.final_latency = histogram(
            "final_latency_seconds", "Time from the end of speech to the publication of the final", _SECONDS
        )
        self.partials_thinned = counter(
            "partials_thinned", "Partials replaced by newer ones before a subscriber took them"
        )
        self.subscribers = gauge("subscribers", "Subscribers, including the clients of streams")
        self.subscribers_dropped = counter(
            "subscribers_dropped", "Subscribers disconnected because they were too far behind"
        )

        self.mqtt_connected = gauge("mqtt_connected", "1 while connected to the broker")
        self.mqtt_waiting = gauge("mqtt_waiting_finals", "Finals that wait for the broker")
        self.mqtt_waiting_bytes = gauge("mqtt_waiting_bytes", "Size of the finals that wait for the broker")
        self.mqtt_oldest = gauge("mqtt_oldest_final_seconds", "How long the oldest final has waited for the broker")
        self.mqtt_dropped = counter("mqtt_dropped_finals", "Finals dropped because too many waited for the broker")
        self.mqtt_expired = counter("mqtt_expired_finals", "Finals dropped because they had waited too long")
        self.mqtt_refused = counter("mqtt_refused", "Messages that the broker refused, mostly by its access rules")
        self.mqtt_too_big = counter(
            "mqtt_too_big",
            "Messages too large for the broker, or that made it close the connection: shortened or given up",
        )
        self.mqtt_bad_commands = counter(
            "mqtt_bad_commands", "Commands that were ignored: neither ON nor OFF, or without a valid source"
        )
        self.mqtt_spool_on_disk = gauge(
            "mqtt_spool_on_disk", "1 while the finals that wait for the broker would survive a restart"
        )
        self.mqtt_spool_errors = counter("mqtt_spool_errors", "Times that the spool file could not be read or written")
        self.mqtt_spool_damaged = counter("mqtt_spool_damaged", "Damaged rows of the spool, moved aside in its file")
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
        """Create the series that are known from the start.

        They can then be divided by, and their first event is an increase.
        """
        for each in (self.jobs, self.jobs_waiting, self.jobs_oldest):
            for kind in _KINDS:
                each.labels(kind)
        for counted in (self.passes, self.draft_tokens, self.draft_tokens_accepted, self.finals):
            for model in _MODELS:
                counted.labels(model)
        for outcome in ("taken", "kept"):
            self.reloads.labels(outcome)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
