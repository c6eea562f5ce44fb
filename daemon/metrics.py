"""Every counter of the service, declared in one place.

Owns the names, the help texts and the registry. Knows nothing of who counts. Nothing is labelled by source or by
client: a client chooses those names, and could make as many series as it likes.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """One registry of its own, so that several services may live in one process."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()

        def counter(name: str, help: str, *labels: str) -> Counter:
            return Counter(f"whisperd_{name}", help, labels, registry=registry)

        def gauge(name: str, help: str, *labels: str) -> Gauge:
            return Gauge(f"whisperd_{name}", help, labels, registry=registry)

        def histogram(name: str, help: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"whisperd_{name}", help, buckets=buckets, registry=registry)

        self.streams_open = gauge("streams_open", "Streams that are open, or whose finals are still to come")
        self.streams = counter("streams", "Streams that were opened")
        self.streams_waiting = gauge("streams_waiting", "Streams whose connection dropped: they wait to be resumed")
        self.streams_resumed = counter("streams_resumed", "Times that a client went on with its stream")
        self.streams_expired = counter("streams_expired", "Streams that waited, and whose client did not come back")
        self.client_errors = counter("client_errors", "Faults of clients, by the code they were told", "code")
        self.connections_refused = counter(
            "connections_refused", "Connections that were refused before they said anything", "reason"
        )
        self.slowed_seconds = counter(
            "slowed_seconds", "How long clients that send too many messages were not read, in all"
        )
        self.accept_failures = counter(
            "accept_failures", "Times that a connection had to wait: no file descriptor was left"
        )
        self.wyoming_clients = gauge("wyoming_clients", "Connections to the Wyoming port")
        self.audio_seconds = counter("audio_seconds", "Audio received")
        self.muted_seconds = counter(
            "muted_seconds", "Audio received of sources that are switched off: not listened to"
        )
        self.backpressure = counter("backpressure", "Times that reading a stream paused until its finals caught up")
        self.backpressure_seconds = counter("backpressure_seconds", "How long those pauses were in all")
        self.microphone_lost_seconds = counter(
            "microphone_lost_seconds", "Microphone audio lost: nobody took it in time"
        )
        self.microphones_open = gauge("microphones_open", "Microphones that are open")
        self.microphone_reopened = counter("microphone_reopened", "Times that the microphone had to be opened again")

        self.reloads = counter("reloads", "Times that the settings were read again", "outcome")

        self.jobs = counter("jobs", "Jobs run", "kind")
        self.jobs_waiting = gauge("jobs_waiting", "Streams that wait for the engine", "kind")
        self.job_failures = counter("job_failures", "Jobs that failed")
        self.batches_halved = counter(
            "batches_halved", "Batches that did not fit into memory, and were run again in halves"
        )
        self.batch_size = histogram("batch_size", "Jobs run at once", _BATCHES)
        self.batch_seconds = histogram("batch_seconds", "How long the engine took for a batch", _SECONDS)
        self.tokens = counter("tokens", "Tokens of all results")
        self.draft_tokens_accepted = counter(
            "draft_tokens_accepted", "Tokens taken over from drafts: not decoded again"
        )
        self.passes = counter("passes", "Decoder passes", "model")
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
        self.mqtt_dropped = counter("mqtt_dropped_finals", "Finals dropped: the broker was away for too long")
        self.mqtt_expired = counter("mqtt_expired_finals", "Finals dropped: they had waited for too long")
        self.mqtt_refused = counter("mqtt_refused", "Messages that the broker refused: its access rules, mostly")
        self.mqtt_bad_commands = counter(
            "mqtt_bad_commands", "Commands that were ignored: neither ON nor OFF, or for no source"
        )
        self.mqtt_spool_on_disk = gauge(
            "mqtt_spool_on_disk", "1 while what waits for the broker would outlive a restart"
        )
        self.mqtt_spool_errors = counter(
            "mqtt_spool_errors", "Times that the spool's file could not be read or written"
        )
        self.mqtt_connections = counter("mqtt_connections", "Connections made to the broker")

    def text(self) -> bytes:
        """The exposition in Prometheus' text format."""
        return generate_latest(self._registry)
