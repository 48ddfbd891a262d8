"""A service on a free loopback port, around a model whose work the test controls."""

import socket
import threading
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np
import pytest


@dataclass
class Service:
    """A running service: `client` is connected to it, and the detector works while `gate` is set."""

    address: str
    client: object
    model: object
    gate: threading.Event
    working: threading.Semaphore

    def held(self) -> int:
        lines = self.client.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("pyface_images_held ")).split()[1]))


@contextmanager
def run_app(app):
    """Runs an ASGI application with uvicorn, yields its address, and stops it as SIGTERM would."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, http="h11", log_level="warning", timeout_graceful_shutdown=30))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture
def serve_detector():
    """Serves a detector; yields its address."""
    from pyface.serve.app import make_app

    @contextmanager
    def serve(detector, name="fake", **limits):
        from pyface.serve.limits import Limits

        with run_app(make_app(detector, name, Limits(**limits))) as address:
            yield address

    return serve


@pytest.fixture
def serve(fake_model, fake_detector, serve_detector):
    """Serves the fake model with batches of at most 3 images; images of level 200 and above make it fail."""
    import httpx

    @contextmanager
    def run(**limits):
        gate, working = threading.Event(), threading.Semaphore(0)
        gate.set()
        find = fake_model.detect

        def detect(images, **options):
            working.release()
            assert gate.wait(30)
            if any(image.float().mean() > 220 for image in images):
                raise MemoryError("out of memory")
            if any(image.float().mean() > 180 for image in images):
                raise RuntimeError("the secret reason")
            return find(images, **options)

        fake_model.detect = detect
        with (
            serve_detector(fake_detector, **limits) as address,
            httpx.Client(base_url=address, timeout=30, trust_env=False) as client,
        ):
            service = Service(address, client, fake_model, gate, working)
            yield service
            gate.set()
            assert service.client.post("/detect", content=png(40)).status_code == 200, "the service no longer works"
            for _ in range(1000):
                if service.held() == 0:
                    break
            assert service.held() == 0, "what was held is given back"

    return run


def png(level=40, width=48, height=32) -> bytes:
    """The file of a flat grey image: the fake model finds one face per 40 levels."""
    return cv2.imencode(".png", np.full((height, width, 3), level, np.uint8))[1].tobytes()


@pytest.fixture(name="png")
def png_fixture():
    return png
