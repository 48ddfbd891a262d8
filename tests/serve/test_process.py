"""`pyface serve` as a program: how it starts, stops, and what it says when it cannot."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyface.cli import app, serve

pytest.importorskip("fastapi_offline", reason='needs pip install -e ".[serve]"')
httpx = pytest.importorskip("httpx", reason="needs pip install httpx")

FAKE_CLI = Path(__file__).parents[1] / "fake_cli.py"


@contextmanager
def running(*arguments, delay=0.0):
    """Runs `pyface serve` with the fake model on a free port; yields the process and the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, str(FAKE_CLI), "serve", "--port", "0", *arguments],
        env=os.environ | {"FAKE_DELAY": str(delay)},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stderr.readline()
        address = re.search(r"http://\S+:\d+", line)
        assert address, line
        yield process, address[0]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def failure(fake_model, monkeypatch):
    """The one sentence of a start that fails."""
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "1")  # so that the command's value does not outlive the test
    monkeypatch.setattr("pyface.models.zoo.create_model", lambda *_: fake_model)

    def fail(*arguments):
        result = CliRunner().invoke(app, ["serve", *arguments])
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("pyface: ")
        assert len(result.stderr.splitlines()) == 1
        return result.stderr

    return fail


def held(address):
    text = httpx.get(f"{address}/metrics").text
    return float(re.search("^pyface_images_held (.*)$", text, re.MULTILINE)[1])


def test_sigterm_finishes_what_was_accepted_and_refuses_the_rest(png):
    with running("--batch-size", "1", delay=0.7) as (process, address), ThreadPoolExecutor(4) as pool:
        futures = [
            pool.submit(httpx.post, f"{address}/detect", content=png(40 * level), timeout=60) for level in range(1, 5)
        ]
        while held(address) < 4:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        refused = False
        while not refused and process.poll() is None:
            try:
                httpx.get(f"{address}/health")
            except httpx.ConnectError:
                refused = True
        assert refused
        assert process.poll() is None, "it refuses new requests while it finishes the old ones"
        assert [len(future.result().json()["faces"]) for future in futures] == [1, 2, 3, 4]
        assert process.wait(60) == 0
        assert process.stderr.read() == ""


def test_options_and_a_stop_with_idle_connections(png):
    options = ("--max-request", "1", "--max-pixels", "10000", "--score-threshold", "0.25", "--root-path", "/faces")
    with running(*options) as (process, address), httpx.Client(base_url=address, timeout=30) as client:
        assert address.startswith("http://127.0.0.1:")
        assert_only_port(process.pid, int(address.rsplit(":", 1)[1]))

        assert client.post("/detect", content=bytes(2**20 + 1)).status_code == 413
        assert client.post("/detect", content=png(width=500)).status_code == 422
        assert [face["score"] for face in client.post("/detect", content=png(160)).json()["faces"]] == [0.4, 0.3]
        assert client.get("/health").json()["score_threshold"] == 0.25

        lie = client.post("/detect", content=image_of_two_sizes())
        assert lie.status_code == 422
        assert "OpenCV" in lie.json()["error"]

        assert "'/faces/openapi.json'" in client.get("/docs").text
        assert client.get("/openapi.json").json()["servers"] == [{"url": "/faces"}]
        assert not re.findall(r'(?:src|href)="/', client.get("/").text), "the page's links are relative"

        with socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1]))):
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0


def assert_only_port(pid, port):
    """The process listens on this port of 127.0.0.1, and on nothing else."""
    table = Path(f"/proc/{pid}/net/tcp")
    if not table.exists():
        return  # only Linux lists the sockets of a process
    links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    assert [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links] == [f"0100007F:{port:04X}"]


def image_of_two_sizes():
    """A JPEG 2000 file with two sizes: pyface reads 8 x 8, the decoder 300 x 300."""
    image = cv2.imencode(".jp2", np.zeros((300, 300), np.uint8))[1].tobytes()
    small = b"ihdr" + (8).to_bytes(4, "big") * 2
    at = image.index(b"jp2h") - 4
    lie = image[:at] + (8 + len(small)).to_bytes(4, "big") + b"free" + small + image[at:]
    assert cv2.imdecode(np.frombuffer(lie, np.uint8), cv2.IMREAD_UNCHANGED).shape == (300, 300)
    return lie


def test_a_port_in_use_is_one_sentence(failure):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = failure("--port", str(port))
    assert f"cannot listen on 127.0.0.1, port {port} (Address already in use); choose others with --host and" in text


def test_a_host_that_is_not_ours_is_one_sentence(failure):
    assert "--host" in failure("--host", "203.0.113.7")


def test_a_missing_extra_is_one_sentence(failure, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyface.serve.app", None)
    assert "pip install" in failure()


def test_a_detector_that_cannot_be_made_is_one_sentence(failure):
    assert "device" in failure("--device", "nonsense")


def test_responses_do_not_wait_for_confirmations():
    """asyncio sets this option only for sockets of a named protocol; without it each response takes 40 ms more."""
    with serve._listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
