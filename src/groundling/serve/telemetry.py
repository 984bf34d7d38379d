"""Metrics for Prometheus."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from groundling.safety.stream import Finding
from groundling.serve.decode.worker import Load

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
RATES = (1, 3, 10, 30, 100, 200, 300, 500, 1000, 3000)


class Metrics:
    """Metrics of one server.

    Args:
        load: returns the current load.
    """

    def __init__(self, load: Callable[[], Load]) -> None:
        self._registry = CollectorRegistry()
        own = self._registry
        self.requests = Counter(
            "groundling_requests", "Responses by route and status", ["route", "status"], registry=own
        )
        self.seconds = Histogram("groundling_request_seconds", "Request duration", buckets=SECONDS, registry=own)
        self.tokens = Counter("groundling_tokens", "Prompt and completion tokens", ["model", "kind"], registry=own)
        self.first_token_s = Histogram(
            "groundling_first_token_seconds", "Time to first token", buckets=SECONDS, registry=own
        )
        self.tokens_per_s = Histogram(
            "groundling_tokens_per_second",
            "Decoding speed of each choice after its first token",
            buckets=RATES,
            registry=own,
        )
        self.aborted = Counter("groundling_aborted", "Aborted requests", ["reason"], registry=own)
        self.filtered = Counter(
            "groundling_filtered", "Findings of the safety stage", ["where", "action"], registry=own
        )
        waiting = Gauge("groundling_queue", "Samples waiting for a slot", registry=own)
        waiting.set_function(lambda: load().waiting)
        active = Gauge("groundling_active", "Samples being decoded", registry=own)
        active.set_function(lambda: load().active)
        for reason in ("disconnect", "deadline", "slow_reader", "error"):
            self.aborted.labels(reason)

    def count(self, findings: Sequence[Finding]) -> None:
        """Count findings of the safety stage."""
        for finding in findings:
            self.filtered.labels(finding.where, finding.action).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)
