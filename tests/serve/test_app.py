"""The service as clients meet it: results, shared batches, overload, hostile uploads, faults."""

import io
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from pyface import FaceDetector
from pyface.io.results import json_line

pytest.importorskip("fastapi_offline", reason='needs pip install -e ".[serve]"')
httpx = pytest.importorskip("httpx", reason="needs pip install httpx")

PAGE = Path(__file__).parents[2] / "pyface" / "serve" / "page"


def assert_refused(response, status, *words):
    """A status and one sentence about why."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert "\n" not in error
    assert len(error) < 400
    for word in words:
        assert word in error


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_body_gives_the_line_of_pyface_detect(serve_detector, astronaut):
    detector = FaceDetector("mtcnn", device="cpu")
    expected = detector(astronaut).to_dict() | {"source": None}
    with serve_detector(FaceDetector("mtcnn", device="cpu")) as address:
        response = httpx.post(f"{address}/detect", content=astronaut.read_bytes(), timeout=60)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.content + b"\n" == json_line(expected)
    assert len(expected["faces"]) == 1


def test_a_form_gives_a_list_in_order(serve, png):
    files = [("file", (f"{level}.png", png(level))) for level in (80, 0, 120, 40, 160)]
    with serve() as service:
        lines = service.client.post("/detect", files=files).json()
        alone = service.client.post("/detect", files=files[:1]).json()
    assert [line["source"] for line in lines] == ["80.png", "0.png", "120.png", "40.png", "160.png"]
    assert [len(line["faces"]) for line in lines] == [2, 0, 3, 1, 4]
    assert alone == lines[:1]
    assert list(lines[0]) == ["source", "width", "height", "faces", "error"]


def test_a_form_with_broken_files_tells_which(serve, png):
    broken = ("b", ("b.png", png()[:-20]))
    with serve() as service:
        response = service.client.post("/detect", files=[("a", ("a.png", png(80))), broken])
        nothing = service.client.post("/detect", files=[broken, broken])
    assert response.status_code == 200
    assert [len(line["faces"]) for line in response.json()] == [2, 0]
    assert [line["error"] is None for line in response.json()] == [True, False]
    assert nothing.status_code == 422
    assert [line["source"] for line in nothing.json()] == ["b.png", "b.png"]


def test_any_content_type_but_a_form_is_a_file(serve, png):
    with serve() as service:
        for kind in ("image/png", "application/x-www-form-urlencoded", "application/json", "text/html; charset=x"):
            response = service.client.post("/detect", content=png(), headers={"Content-Type": kind})
            assert len(response.json()["faces"]) == 1, kind


def test_a_request_has_its_own_threshold(serve, fake_detector, png):
    fake_detector.score_threshold = 0.15
    with serve() as service:
        scores = {}
        for query in ("", "?score_threshold=0.3", "?score_threshold=0", "?score_threshold=1"):
            faces = service.client.post(f"/detect{query}", content=png(160)).json()["faces"]
            scores[query] = [face["score"] for face in faces]
        again = service.client.post("/detect", content=png(160)).json()["faces"]
    assert list(scores.values()) == [[0.4, 0.3, 0.2], [0.4], [0.4, 0.3, 0.2, 0.1], []]
    assert [face["score"] for face in again] == [0.4, 0.3, 0.2]


# --- many clients ----------------------------------------------------------------------------------------------------


def test_many_threads_get_what_the_detector_gives_alone(serve, fake_detector):
    images = [np.full((20 + k % 7, 30 + k % 11, 3), 40 * (k % 5), np.uint8) for k in range(120)]
    expected = [detections.to_dict() for detections in fake_detector(images)]
    with serve(queue=200) as service, ThreadPoolExecutor(16) as pool:

        def post(image):
            return service.client.post("/detect", content=cv2.imencode(".png", image)[1].tobytes()).json()

        assert list(pool.map(post, images)) == expected


def test_real_faces_of_many_threads(serve_detector, astronaut, gallery):
    small = cv2.imencode(".jpg", cv2.resize(cv2.imread(str(gallery)), (480, 280)))[1].tobytes()
    files = [astronaut.read_bytes(), small] * 4
    detector = FaceDetector("s3fd_lite", device="cpu", batch_size=3)
    alone = [detector(file).to_dict() for file in files[:2]]
    with serve_detector(detector) as address, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda file: httpx.post(f"{address}/detect", content=file, timeout=60).json(), files))
    for one, expected in zip(found, alone * 4, strict=True):
        assert len(one["faces"]) == len(expected["faces"]) > 0
        for face, other in zip(one["faces"], expected["faces"], strict=True):
            np.testing.assert_allclose(face["box"], other["box"], atol=1e-2)
            np.testing.assert_allclose(face["landmarks"], other["landmarks"], atol=1e-2)
            np.testing.assert_allclose(face["score"], other["score"], atol=1e-4)


def test_clients_share_batches(serve, png):
    with serve() as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        first = pool.submit(service.client.post, "/detect", content=png(40))
        service.working.acquire()
        rest = [pool.submit(service.client.post, "/detect", content=png(80)) for _ in range(6)]
        wait_for(lambda: service.held() == 7)
        time.sleep(0.2)  # most of them are decoded meanwhile
        service.gate.set()
        assert [len(future.result().json()["faces"]) for future in [first, *rest]] == [1] + 6 * [2]
        assert sum(service.model.batches) == 7
        assert len(service.model.batches) <= 5


def test_batches_have_one_threshold_each(serve, png):
    with serve() as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        thresholds = [0.05, 0.25, 0.05, 0.35, 0.25, 0.05]
        futures = [
            pool.submit(service.client.post, f"/detect?score_threshold={threshold}", content=png(160))
            for threshold in thresholds
        ]
        wait_for(lambda: service.held() == len(thresholds))
        service.gate.set()
        assert [len(future.result().json()["faces"]) for future in futures] == [4, 2, 4, 1, 2, 4]


# --- overload --------------------------------------------------------------------------------------------------------


def assert_busy(response):
    assert_refused(response, 503, "busy")
    assert re.fullmatch("[1-9][0-9]*", response.headers["Retry-After"])


def test_a_full_queue_answers_503(serve, png):
    with serve(queue=3) as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        inside = [pool.submit(service.client.post, "/detect", content=png(80)) for _ in range(3)]
        wait_for(lambda: service.held() == 3)
        for _ in range(20):
            assert_busy(service.client.post("/detect", content=png()))
        assert service.client.get("/health").status_code == 200
        service.gate.set()
        assert [len(future.result().json()["faces"]) for future in inside] == [2, 2, 2]
        assert service.client.post("/detect", content=png()).status_code == 200


def test_a_form_counts_by_its_files(serve, png):
    with serve(queue=3) as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        inside = pool.submit(service.client.post, "/detect", content=png(80))
        service.working.acquire()
        assert_busy(service.client.post("/detect", files=[("f", ("a.png", png()))] * 3))
        service.gate.set()
        assert inside.result().status_code == 200
        assert service.client.post("/detect", files=[("f", ("a.png", png()))] * 3).status_code == 200


def test_held_bytes_are_bounded(serve, png):
    big = png() + bytes(60_000)  # decoders ignore what follows the image
    with serve(held_bytes=100_000, request_bytes=70_000) as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        inside = pool.submit(service.client.post, "/detect", content=big)
        service.working.acquire()
        assert_busy(service.client.post("/detect", content=big))
        service.gate.set()
        assert inside.result().status_code == 200


def test_a_deadline_passes_and_late_images_are_dropped(serve, png):
    with serve(deadline=2.0) as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        futures = [pool.submit(service.client.post, "/detect", content=png(80))]
        service.working.acquire()
        futures += [pool.submit(service.client.post, "/detect", content=png(80)) for _ in range(4)]
        for future in futures:
            assert_busy(future.result())
        service.gate.set()
        wait_for(lambda: service.held() == 0)
        assert service.model.batches == [1]


def test_retry_after_grows_with_the_queue(serve, fake_detector, png):
    from pyface.serve.batching import Batcher
    from pyface.serve.limits import Limits

    batcher = Batcher(fake_detector, Limits(queue=100, deadline=9.5))
    assert batcher.retry_after() == 1
    batcher._seconds_per_image = 0.1
    batcher.room.take(40, 0)
    assert batcher.retry_after() == 4
    batcher.room.take(60, 0)
    assert batcher.retry_after() == 10


# --- hostile uploads -------------------------------------------------------------------------------------------------


def hostile_files(png):
    good = png()
    jpeg = cv2.imencode(".jpg", np.full((64, 64, 3), 40, np.uint8))[1].tobytes()
    return {
        "empty": b"",
        "one byte": b"\xff",
        "cut PNG": good[:-20],
        "cut JPEG": jpeg[: len(jpeg) // 2],
        "PNG signature": good[:8],
        "PNG bomb": good[:16] + b"\0\1\0\0\0\1\0\0" + good[24:],
        "BMP bomb": b"BM" + bytes(12) + b"\x28\0\0\0" + b"\xff\xff\xff\x7f" * 2 + bytes(60),
        "damaged": good[:50] + bytes(20) + good[70:],
        "text": b"<html><body>a photo</body></html>",
        "path": b"/etc/passwd",
        "address": b"http://127.0.0.1:1/photo.jpg",
        "JSON": b'{"url": "file:///etc/passwd"}',
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "gzip": b"\x1f\x8b\x08" + bytes(1000),
        "zeros": bytes(100_000),
    }


def test_hostile_files_are_refused_with_a_sentence(serve, png):
    with serve() as service:
        for name, data in hostile_files(png).items():
            response = service.client.post("/detect", content=data)
            assert_refused(response, 422)
            assert response.json() == {
                "source": None, "width": None, "height": None, "faces": [], "error": response.json()["error"]
            }, name  # fmt: skip
        assert service.model.batches == []


def test_too_many_pixels_are_refused(serve, fake_detector, png):
    fake_detector.max_pixels = 47 * 32
    with serve() as service:
        assert_refused(service.client.post("/detect", content=png()), 422, "48 x 32", "limit of 1504 pixels")
        fake_detector.max_pixels = 48 * 32
        assert service.client.post("/detect", content=png()).status_code == 200


def test_names_are_only_repeated(serve, png):
    with serve() as service:
        for name in ("../../../etc/passwd", "http://127.0.0.1/a.jpg", "ü" * 500, "名.png", "%00", "' or 1"):
            response = service.client.post("/detect", files={"file": (name, png(80))})
            assert response.status_code == 200
            assert [(line["source"], len(line["faces"])) for line in response.json()] == [(name, 2)]
        for name in ("a\x00b", "a\r\nb", '"; drop', "C:\\CON"):  # which clients and parsers read in different ways
            assert len(service.client.post("/detect", files={"file": (name, png(80))}).json()[0]["faces"]) == 2
        # A part without a name is a field, not a file.
        assert_refused(service.client.post("/detect", files={"file": ("", png())}), 400, "no file")
        assert_refused(service.client.post("/detect", files={"file": ("x" * 100_000, png())}), 400, "form")


def form(*parts, boundary=b"b"):
    return b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"


def test_damaged_forms_are_refused(serve):
    kind = "multipart/form-data; boundary=b"
    field, file = (
        b'Content-Disposition: form-data; name="a"' + rest + b"\r\n\r\nx" for rest in (b"", b'; filename="a"')
    )
    cases = [
        ("multipart/form-data", form(), ["boundary"]),
        ("Multipart/Form-Data; boundary=" + "b" * 5000, b"", ["form"]),
        (kind, b"", ["no file"]),
        (kind, b"no form at all", ["form"]),
        (kind, form(b"no header\r\n\r\nx"), ["form"]),
        (kind, form(b"Content-Disposition: form-data\r\n\r\nx"), ["name"]),
        (kind, form(field), ["no file"]),
        (kind, form(*[file] * 65), ["Too many files", "64"]),
        (kind, form(*[field] * 1000), ["Too many fields"]),
    ]
    with serve() as service:
        for kind, body, words in cases:
            response = service.client.post("/detect", content=body, headers={"Content-Type": kind})
            assert_refused(response, 400, *words)


def test_a_form_that_ends_early(serve, png):
    whole = form(b'Content-Disposition: form-data; name="a"; filename="a"\r\n\r\n' + png(80))
    with serve() as service:
        for length in range(0, len(whole), 37):
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            response = service.client.post("/detect", content=whole[:length], headers=headers)
            assert response.status_code in (400, 422), length


def test_large_requests_are_refused_with_and_without_a_length(serve, png):
    with serve(request_bytes=10_000) as service:
        assert_refused(service.client.post("/detect", content=bytes(10_001)), 413, "10000 bytes")
        assert_refused(service.client.post("/detect", content=iter([bytes(6000)] * 2)), 413, "10000 bytes")
        files = {"file": ("a.png", io.BytesIO(png() + bytes(10_000)))}
        assert_refused(service.client.post("/detect", files=files), 413, "10000 bytes")
        assert service.client.post("/detect", content=iter([png()[:50], png()[50:]])).status_code == 200


def send(address, text):
    """Opens a connection and sends the beginning of a request."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(text)
    return connection


def test_an_oversized_length_is_refused_before_its_body_comes(serve):
    with serve(request_bytes=10_000) as service:
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        with send(service.address, head) as connection:
            assert connection.recv(1000).startswith(b"HTTP/1.1 413")


def test_a_slow_upload_is_given_up(serve):
    with serve(deadline=2.0, queue=1) as service:
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + bytes(10)
        with send(service.address, head) as connection:
            wait_for(lambda: service.held() == 1)
            assert_busy(service.client.post("/detect", content=b""))
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
        assert service.held() == 0


def test_a_client_that_goes_away_leaves_its_room(serve):
    with serve() as service:
        for _ in range(5):
            send(service.address, b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n").close()
        wait_for(lambda: 'status="400"} 5.0' in service.client.get("/metrics").text)
        assert service.held() == 0


def test_a_client_that_does_not_wait_for_its_answer(serve, png):
    with serve() as service:
        service.gate.clear()
        head = b"POST /detect HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(png())
        send(service.address, head + png()).close()
        service.working.acquire()
        service.gate.set()
        wait_for(lambda: service.held() == 0)


# --- faults ----------------------------------------------------------------------------------------------------------


def test_a_fault_is_a_500_and_does_not_reach_other_clients(serve, png, caplog):
    with serve() as service, ThreadPoolExecutor(8) as pool:
        service.gate.clear()
        first = pool.submit(service.client.post, "/detect", content=png(40))
        service.working.acquire()
        rest = [pool.submit(service.client.post, "/detect", content=png(level)) for level in (80, 200, 120)]
        wait_for(lambda: service.held() == 4)
        service.gate.set()
        assert first.result().status_code == 200
        good, bad, other = (future.result() for future in rest)
        assert [len(response.json()["faces"]) for response in (good, other)] == [2, 3]
        assert_refused(bad, 500, "detector failed")
    assert "secret" not in bad.text
    assert "the secret reason" in caplog.text


def test_health_reports_a_detector_that_fails_on_everything(serve, png):
    with serve() as service:
        for _ in range(7):
            assert service.client.post("/detect", content=png(200)).status_code == 500
        assert service.client.get("/health").status_code == 200
        assert service.client.post("/detect", content=png(200)).status_code == 500
        assert service.client.get("/health").status_code == 503
        assert service.client.post("/detect", content=png(40)).status_code == 200
        assert service.client.get("/health").status_code == 200


def test_an_image_too_large_for_the_model(serve, png):
    with serve() as service:
        assert_refused(service.client.post("/detect", content=png(240)), 422, "48 x 32", "memory")


def test_a_fault_while_reading(serve, png, monkeypatch):
    def explode(*_):
        raise RuntimeError("the secret reason")

    with serve() as service:
        with monkeypatch.context() as patch:
            patch.setattr("pyface.serve.batching.decode_image", explode)
            response = service.client.post("/detect", content=png())
        assert_refused(response, 500)
        assert "secret" not in response.text


# --- the rest of the interface ---------------------------------------------------------------------------------------


def test_wrong_parameters_are_named(serve, png):
    with serve() as service:
        for value in ("7", "-1", "x", "nan", "", "1e999"):
            response = service.client.post(f"/detect?score_threshold={value}", content=png())
            assert_refused(response, 422, f"score_threshold must be from 0 to 1, got {value}"[:300])
        response = service.client.post("/detect?score_treshold=0.9", content=png())
        assert_refused(response, 422, "the only parameter is score_threshold, got score_treshold; correct")
        fields = {"score_threshold": "0.9"}
        response = service.client.post("/detect", files={"file": ("a.png", png())}, data=fields)
        assert_refused(response, 422, "must be files, got the field score_threshold; ", "/detect?score_threshold=0.5")


def test_unknown_paths_and_methods(serve):
    with serve() as service:
        assert_refused(service.client.get("/nothing"), 404)
        assert_refused(service.client.get("/../../etc/passwd"), 404)
        assert_refused(service.client.get("/static-offline-docs/%2e%2e/core.py"), 404)
        assert_refused(service.client.get("/detect"), 405)


def test_health(serve):
    with serve() as service:
        health = service.client.get("/health").json()
    assert health.pop("version")
    assert health == {"status": "ok", "model": "fake", "device": "cpu", "score_threshold": 0.0}


def test_metrics(serve, png):
    with serve() as service:
        service.client.post("/detect", content=png(120))
        service.client.post("/detect", files=[("f", ("a.png", png(80))), ("f", ("b.png", b"x"))])
        service.client.post("/detect", content=b"x")
        service.client.post("/detect", content=png(200))
        text = service.client.get("/metrics").text
    for line in (
        'pyface_requests_total{status="200"} 2.0',
        'pyface_requests_total{status="422"} 1.0',
        'pyface_requests_total{status="500"} 1.0',
        'pyface_images_total{result="read"} 2.0',
        'pyface_images_total{result="unreadable"} 2.0',
        'pyface_images_total{result="failed"} 1.0',
        "pyface_faces_total 5.0",
        "pyface_batch_images_sum 2.0",
        "pyface_request_seconds_count 4.0",
    ):
        assert f"{line}\n" in text
    assert "process_resident_memory_bytes" in text


def test_the_documentation_describes_the_interface_and_loads_nothing_from_elsewhere(serve):
    with serve() as service:
        paths = service.client.get("/openapi.json").json()["paths"]
        page = service.client.get("/docs").text
        scripts = re.findall(r'(?:src|href)="([^"]+)"', page)
        assert [service.client.get(script).status_code for script in scripts] == [200] * len(scripts)
    assert set(paths) == {"/detect", "/health", "/metrics"}
    detect = paths["/detect"]["post"]
    assert set(detect["requestBody"]["content"]) == {"application/octet-stream", "multipart/form-data"}
    assert set(detect["responses"]) == {"200", "400", "408", "413", "422", "500", "503"}
    assert len(scripts) >= 3
    assert all(script.startswith("/static") for script in scripts)


def test_the_page_loads_nothing_from_elsewhere(serve):
    with serve() as service:
        for name, kind in (("", "text/html"), ("style.css", "text/css"), ("script.js", "text/javascript")):
            response = service.client.get(f"/{name}")
            assert response.content == (PAGE / (name or "index.html")).read_bytes()
            assert response.headers["content-type"].startswith(kind)
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert "//" not in re.sub(r"\s//.*", "", response.text)


def test_an_installed_package_has_the_page():
    import tomllib

    project = tomllib.loads((PAGE.parents[2] / "pyproject.toml").read_text())
    assert "serve/page/*" in project["tool"]["setuptools"]["package-data"]["pyface"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        threading.Event().wait(0.02)
