"""What the tests share: a model that needs no network, and images made on the spot."""

import importlib.util
import os
import sys
from pathlib import Path

# Before torch loads its OpenMP: threads that spin while they wait slow a busy machine down tenfold.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

TESTS = Path(__file__).parent


def load_beside(path: str):
    """Imports tests/<path> under its stem's name, since tests/ is not a package."""
    name = Path(path).stem
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def load_fake_cli():
    """Imports tests/fake_cli.py."""
    return load_beside("fake_cli.py")


@pytest.fixture
def cuda() -> str:
    """The name of the GPU's device, for tests that make sense only there."""
    import torch

    from pyface.ops.extension import build_info

    if not torch.cuda.is_available():
        pytest.skip("no usable GPU on this machine")
    assert build_info()["cuda"], "a GPU is here, but pyface was built without CUDA"
    return "cuda"


@pytest.fixture(scope="session")
def cuda_host_module():
    """tests/cuda_host/host.py."""
    return load_beside("cuda_host/host.py")


@pytest.fixture(scope="session")
def emulated_gpu(cuda_host_module):
    """The CUDA kernels, compiled for the emulated device (tests/cuda_host/README.md)."""
    root = cuda_host_module.ROOT
    return cuda_host_module.Device(
        cuda_host_module.build(root, root / "build" / f"cuda_host-{sys.implementation.cache_tag}")
    )


@pytest.fixture
def cuda_host(emulated_gpu, cuda_host_module, monkeypatch, request) -> str:
    """Ops run their CUDA kernels on the emulated device until the test ends; tensors stay on the CPU."""
    cuda_host_module.use(emulated_gpu, monkeypatch, request.node.nodeid)
    return "cpu"


@pytest.fixture
def fake_model():
    """A FakeModel: one face for every 40 grey levels of an image's mean."""
    return load_fake_cli().FakeModel()


@pytest.fixture
def fake_detector(fake_model):
    """A FaceDetector around a FakeModel."""
    from pyface.detector import FaceDetector

    return FaceDetector(fake_model, device="cpu", batch_size=3)


@pytest.fixture(scope="session")
def astronaut():
    """The path of the example image, which shows one face."""
    return TESTS.parent / "examples" / "astronaut.jpg"


@pytest.fixture(scope="session")
def gallery():
    """The path of the composed example image, which shows nine faces."""
    return TESTS.parent / "examples" / "gallery.jpg"


@pytest.fixture
def write_grey(tmp_path):
    """Writes a flat grey image of a level (40 is one fake face, 80 two) and returns its path."""

    def write(name: str, level: int = 40, width: int = 48, height: int = 32) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(path.suffix, np.full((height, width, 3), level, np.uint8))[1]
        path.write_bytes(encoded.tobytes())
        return path

    return write


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    """Runs `pyface` in this process, in a temporary folder, and checks its exit status; raises what escapes it."""
    from pyface.cli import app

    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0, stdin=None):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == status, result.output
        return result

    return run
