"""What a server counts, as Prometheus reads it."""

from collections import deque
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from promptprism.drift import LEAST, Reference
from promptprism.runtime import Answers

#: The latest answers that are compared with the reference.
_WINDOW = 512


class Metrics:
    """Counters of one server.

    Args:
        reference: answers about held-out photos; None measures no drift.
        accepted: gives the images that are accepted and not yet answered.
        temperature: that answers are calibrated by, and those of the reference are not.
    """

    def __init__(
        self, reference: Reference | None, accepted: Callable[[], int], temperature: float = 1.0
    ) -> None:
        self.temperature = temperature
        self.registry = where = CollectorRegistry()
        self.requests = Counter("promptprism_requests", "Requests.", ["path", "status"], registry=where)
        self.seconds = Histogram(
            "promptprism_request_seconds", "From arrival to answer.", ["path"], registry=where
        )
        self.images = Counter("promptprism_images", "Images answered.", registry=where)
        self.unread = Counter("promptprism_unread_images", "Images that could not be read.", registry=where)
        sizes = (1, 2, 4, 8, 16, 32, 64)
        self.batches = Histogram(
            "promptprism_batch_images", "Images of a batch.", buckets=sizes, registry=where
        )
        self.model = Histogram("promptprism_batch_seconds", "Of the model, for a batch.", registry=where)
        waiting = Gauge("promptprism_waiting_images", "Accepted and not yet answered.", registry=where)
        waiting.set_function(accepted)
        self.latest: deque[tuple[float, float | None]] = deque(maxlen=_WINDOW)
        if reference is not None:
            self.registry.register(_Drift(reference, self.latest))

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch of the model."""
        self.batches.observe(images)
        self.model.observe(seconds)

    def answered(self, answers: Answers, own: bool) -> None:
        """Count answers; those among other classes are no drift."""
        self.images.inc(len(answers.probability))
        if own:
            doubt = answers.uncertainty
            uncertainty = [None] * len(answers.probability) if doubt is None else doubt.tolist()
            shares = answers.probability.astype(float) ** self.temperature  # as before they were calibrated
            leading = shares.max(-1) / shares.sum(-1)
            self.latest.extend(zip(leading.tolist(), uncertainty, strict=True))

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


class _Drift(Collector):
    """Distance of the latest answers from the reference, computed when it is asked for."""

    def __init__(self, reference: Reference, latest: deque[tuple[float, float | None]]) -> None:
        self.reference, self.latest = reference, latest

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Give three gauges for each score, once there are enough answers."""
        latest = [*self.latest]
        if len(latest) < LEAST or len(self.reference.probability) < LEAST:
            return
        doubt = [doubt for _, doubt in latest if doubt is not None]
        found = self.reference.shift([share for share, _ in latest], doubt or None)["scores"]
        for name, what in (
            ("distance", "Kolmogorov-Smirnov distance"),
            ("p_value", "p-value of the two-sample test"),
            ("effect", "Cliff's delta"),
        ):
            gauge = GaugeMetricFamily(
                f"promptprism_drift_{name}",
                f"{what} of the latest answers from the reference.",
                labels=["score"],
            )
            for score, values in found.items():
                gauge.add_metric([score], values[name])
            yield gauge
