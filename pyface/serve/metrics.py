"""What the service counts for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class Metrics:
    """The metrics of one service, in a registry of its own.

    Args:
        images_held: Returns the number of images in the service.
    """

    def __init__(self, images_held: Callable[[], int]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("pyface_requests", "Requests to /detect by HTTP status", ["status"], registry=registry)
        self.request_seconds = Histogram(
            "pyface_request_seconds", "Time from a request's headers to its response", registry=registry
        )
        self.images = Counter(
            "pyface_images", "Images by result: read, unreadable, failed or late", ["result"], registry=registry
        )
        self.faces = Counter("pyface_faces", "Faces returned", registry=registry)
        self.batch_images = Histogram(
            "pyface_batch_images", "Images per batch", buckets=[2**k for k in range(9)], registry=registry
        )
        self.batch_seconds = Histogram("pyface_batch_seconds", "Detection time per batch", registry=registry)
        held = Gauge("pyface_images_held", "Images in the service, at most the queue's length", registry=registry)
        held.set_function(images_held)
