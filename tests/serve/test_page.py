"""The page in a real browser: a dropped photo shows its faces, a broken file says so."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

from pyface import FaceDetector

pytest.importorskip("fastapi_offline", reason='needs pip install -e ".[serve]"')


def load_browser():
    """Imports browser.py, since tests/ is not a package."""
    spec = importlib.util.spec_from_file_location("pyface_test_browser", Path(__file__).with_name("browser.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def open_page(serve_detector, tmp_path):
    """Opens the page of a service with the default detector."""
    module = load_browser()
    if module.CHROMIUM is None:
        pytest.skip("needs a browser: apt install chromium")
    with serve_detector(FaceDetector("s3fd_lite", device="cpu"), "s3fd_lite") as address:
        browser = module.Browser(tmp_path, f"{address}/")
        browser.address = address
        yield browser
        browser.close()


STATUS = "document.getElementById('status').textContent"
DRAWN = """(() => {
    const canvas = document.getElementById('canvas');
    if (canvas.hidden) return 0;
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    let green = 0;
    for (let k = 0; k < pixels.length; k += 4)
        green += pixels[k] === 0x3c && pixels[k + 1] === 0xdc && pixels[k + 2] === 0x3c;
    return green;
})()"""

# The real one works only in a window that has the focus.
CLIPBOARD = """
    globalThis.copied = null;
    Object.defineProperty(navigator, "clipboard", { value: { writeText: async (text) => { copied = text; } } });
"""


def set_threshold(page, value):
    page.evaluate(
        f"(() => {{ const s = document.getElementById('threshold'); s.value = {value};"
        " s.dispatchEvent(new Event('input')); })()"
    )


def test_the_page(open_page, astronaut, gallery, tmp_path):
    page = open_page
    page.wait_for("document.getElementById('model').textContent === 's3fd_lite on cpu'")

    page.drop("#stage", gallery)
    page.wait_for(f"{STATUS} === '9 faces'")
    assert page.evaluate(DRAWN) > 1000
    lines = json.loads(page.evaluate("document.getElementById('json').textContent"))
    assert (lines["width"], lines["height"], len(lines["faces"])) == (960, 560, 9)

    set_threshold(page, 0.99)
    highest = page.evaluate("document.getElementById('threshold').max")
    expected = sum(face["score"] > float(highest) for face in lines["faces"])
    assert page.evaluate(STATUS) == f"{expected} faces"
    set_threshold(page, 0.5)
    assert page.evaluate(STATUS) == "9 faces"

    assert page.evaluate("[1, 0.9996, 0.987, 0.29].map(formatScore)") == ["1.00", "0.99", "0.99", "0.29"]

    page.choose("#file", astronaut)
    page.wait_for(f"{STATUS} === '1 face'")
    if shot := os.environ.get("PYFACE_SCREENSHOT"):
        Path(shot).write_bytes(page.screenshot())
    page.evaluate(CLIPBOARD)
    page.evaluate("document.getElementById('copy').click()")
    page.wait_for(f"{STATUS} === 'Copied.'")
    copied = json.loads(page.evaluate("copied"))
    assert copied == FaceDetector("s3fd_lite", device="cpu")(astronaut).to_dict() | {"source": None}

    broken = tmp_path / "broken.jpg"
    broken.write_bytes(astronaut.read_bytes()[:5000])
    page.drop("#stage", broken)
    page.wait_for("document.querySelector('#status.error') !== null")
    assert "cut short" in page.evaluate(STATUS)
    assert page.evaluate(DRAWN) == 0
    assert page.evaluate("document.getElementById('found').hidden")

    page.evaluate("document.getElementById('camera').click()")
    page.wait_for("document.getElementById('camera').textContent === 'Take the photo'")
    page.wait_for("document.getElementById('video').videoWidth > 0")
    page.evaluate("document.getElementById('camera').click()")
    page.wait_for(f"/^[0-9]+ faces?$/.test({STATUS})")
    assert page.evaluate("document.getElementById('video').hidden && !document.getElementById('canvas').hidden")

    assert all(url.startswith((page.address, "data:", "blob:")) for url in page.requests), page.requests
