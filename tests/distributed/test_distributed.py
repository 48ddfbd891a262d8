"""Detection on a local Ray cluster of two nodes, one of which is lost: every image once, as in one process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from pyface.cli import app
from pyface.detector import FaceDetector

ray = pytest.importorskip("ray", reason='needs pip install "pyface-engine[ray]"')
pa = pytest.importorskip("pyarrow", reason='needs pip install "pyface-engine[ray]"')
from pyarrow import parquet  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pyface.distributed import ResultFolder, detect, image_dataset, read_images  # noqa: E402
from pyface.distributed.detection import Worker  # noqa: E402
from pyface.distributed.results import is_in  # noqa: E402
from pyface.io.results import OutputError  # noqa: E402
from pyface.io.sources import SourceError  # noqa: E402

NUMBER = int(os.environ.get("PYFACE_RAY_IMAGES", "640"))
MODEL = {"model": "mtcnn", "min_face": 40.0, "device": "cpu"}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes with two CPUs each, on this machine; the second one may be removed."""
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 2**28, "include_dashboard": False}
    )
    node = made.add_node(num_cpus=2, object_store_memory=2**28)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield made, node
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut):
    """Small crops of a photo, all different, a few with a face; one file is no image and one name does not exist."""
    folder = tmp_path_factory.mktemp("photos")
    photo = cv2.imread(str(astronaut))
    random = np.random.default_rng(0)
    for number in range(NUMBER - 1):
        x, y = random.integers(0, 512 - 160, 2) if number % 4 else random.integers((130, 20), (150, 40))
        cv2.imwrite(str(folder / f"{number:05}.jpg"), photo[y : y + 160, x : x + 160])
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def expected(photos):
    """The results of one process, by name."""
    names = [str(path) for path in sorted(photos.iterdir())]
    results = {}
    for outcome in FaceDetector(**MODEL, threads=1).stream(names):
        faces = outcome.detections
        results[outcome.source] = str(outcome.error) if faces is None else faces.to_dict()["faces"]
    assert any(results.values())
    return results


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_text().splitlines()]


def by_name(found: list[dict]) -> dict:
    assert len({row["source"] for row in found}) == len(found)
    return {row["source"]: row["faces"] if row["error"] is None else row["error"] for row in found}


def faces_of(found: dict) -> dict:
    """The results without the errors, whose texts depend on where an image came from."""
    return {name: faces for name, faces in found.items() if isinstance(faces, list)}


def stat(process: int) -> list[str]:
    """The fields of a process after its name: state, parent, ..."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def cpu_seconds() -> dict[int, float]:
    """The CPU seconds of the detectors by process, grandchildren of this process by way of a node's raylet."""
    seconds = {}
    for process in (int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            title = Path(f"/proc/{process}/cmdline").read_bytes()
            is_ready = title.startswith(b"ray::MapWorker") and b"__init__" not in title
            if is_ready and int(stat(int(stat(process)[1]))[1]) == os.getpid():
                seconds[process] = sum(map(int, stat(process)[11:13])) / os.sysconf("SC_CLK_TCK")
    return seconds


def wait_for_busy_worker() -> int:
    """Returns the process of a detector that has just worked for half a second."""
    first: dict[int, float] = {}
    while True:
        for process, seconds in cpu_seconds().items():
            if seconds - first.setdefault(process, seconds) > 0.5:
                return process
        time.sleep(0.05)


def test_a_worker_is_killed_and_a_node_removed(cluster, photos, expected, tmp_path):
    made, node = cluster
    images = read_images([str(photos)])
    found = detect(images.dataset, **MODEL, image=images.image, source=images.source, workers=2)
    folder = ResultFolder(str(tmp_path), "jsonl", rows_per_file=50)

    def break_things() -> None:
        os.kill(wait_for_busy_worker(), signal.SIGKILL)
        made.remove_node(node, allow_graceful=False)
        assert len(rows(tmp_path)) < NUMBER

    with ThreadPoolExecutor(1) as pool:
        broken = pool.submit(break_things)
        counts = folder.save(found)
        broken.result()
    assert by_name(rows(tmp_path)) == expected
    assert (counts.images, counts.failed) == (NUMBER, 1)
    assert not list(tmp_path.glob(".*"))


def test_restart_skips_what_is_written(cluster, photos, expected, tmp_path):
    """Parquet with the images' contents, of which a first run had only a part."""
    files = sorted(photos.iterdir())
    table = pa.table({"url": [str(path) for path in files], "jpg": [path.read_bytes() for path in files]})
    (tmp_path / "in").mkdir()
    parquet.write_table(table.slice(0, 100), tmp_path / "in" / "0.parquet", row_group_size=30)
    for form in ("parquet", "jsonl"):
        for resume in (False, True):
            images = read_images([str(tmp_path / "in" / "*.parquet")], image="jpg", source="url")
            folder = ResultFolder(str(tmp_path / form), form, resume=resume, made_by={"model": "mtcnn"})
            (tmp_path / form / ".left.part").write_bytes(b"half")
            found = detect(images.dataset, **MODEL, image="jpg", source="url", workers=1, done=folder.done)
            counts = folder.save(found)
            assert counts.images == (100 if not resume else len(files) - 100)
            parquet.write_table(table.slice(100), tmp_path / "in" / "1.parquet")
        (tmp_path / "in" / "1.parquet").unlink()
        again = ResultFolder(str(tmp_path / form), form, resume=True, made_by={"model": "mtcnn"})
        assert not list((tmp_path / form).glob(".*.part"))
        assert again.before.images == len(again.done) == len(files) - 1  # without the one that is tried again
    assert faces_of(by_name(rows(tmp_path / "jsonl"))) == faces_of(expected)
    read = parquet.read_table(tmp_path / "parquet")
    assert sum(len(faces) for faces in read["faces"].to_pylist()) == again.before.faces
    with pytest.raises(OutputError, match="was made with model mtcnn, this command has model s3fd_lite"):
        ResultFolder(str(tmp_path / "parquet"), resume=True, made_by={"model": "s3fd_lite"})
    with pytest.raises(OutputError, match="has results already"):
        ResultFolder(str(tmp_path / "parquet"))


def test_tars(cluster, photos, expected, tmp_path):
    """Every image of a tar is a row, also if names share their first part."""
    names = {"a.jpg": "00000.jpg", "a.left.jpg": "00004.jpg", "a.json": None, "b/c.jpg": "00008.jpg"}
    for shard in ("0.tar", "1.tar"):
        with tarfile.open(tmp_path / shard, "w") as tar:
            for name, photo in names.items():
                content = b"{}" if photo is None else (photos / photo).read_bytes()
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    images = read_images([str(tmp_path / "*.tar")])
    found = by_name(detect(images.dataset, **MODEL, image=images.image, source=images.source, workers=1).take_all())
    assert {name.removeprefix(f"{tmp_path}/") for name in found} == {
        f"{shard}/{name}" for shard in ("0.tar", "1.tar") for name in names if name != "a.json"
    }
    boxes = [face["box"] for face in found[f"{tmp_path}/1.tar/a.left.jpg"]]
    np.testing.assert_array_equal(
        np.float32(boxes), np.float32([face["box"] for face in expected[str(photos / "00004.jpg")]])
    )


def test_command(cluster, photos, expected, tmp_path):
    """As a user runs it: in a process of its own that joins the cluster."""
    command = [sys.executable, "-m", "pyface", "detect", str(photos), "--ray", cluster[0].address]
    command += ["--model", "mtcnn", "--min-face", "40", "--device", "cpu", "--workers", "1"]
    command += ["--output", str(tmp_path / "out"), "--format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert f"{NUMBER} images, " in done.stderr
    assert "1 image could not be read" in done.stderr
    assert by_name(rows(tmp_path / "out")) == expected
    again = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert (again.returncode, f"1 image, 0 faces, {NUMBER - 1} done before" in again.stderr) == (1, True), again.stderr
    assert by_name(rows(tmp_path / "out")) == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fps", "2", "--ray", "auto"], "--fps must be left out with --ray"),
        (["--ray", "auto"], "--ray needs a folder for its results; add --output DIR"),
        (["--ray", "auto", "--resume"], "--resume needs a file of results"),
        (["--ray", "auto", "--output", "out", "--format", "csv"], "--format must be parquet or jsonl with --ray"),
    ],
)
def test_mistaken_commands(arguments, message):
    done = CliRunner().invoke(app, ["detect", "photos", *arguments])
    assert done.exit_code == 2
    assert message in done.stderr


def test_worker_keeps_errors_in_rows(cluster, tmp_path):
    worker = Worker(ray.put(FaceDetector(**MODEL)), None, "path", "source")
    found = worker(pa.table({"path": [str(tmp_path / "none.jpg")], "source": ["none.jpg"]})).to_pylist()
    assert found == [
        {
            "source": "none.jpg",
            "width": None,
            "height": None,
            "faces": [],
            "error": f"{tmp_path}/none.jpg: there is no such file",
        }
    ]


def test_mistakes(cluster, tmp_path):
    with pytest.raises(SourceError, match=r"must be of one kind, got .parquet, images"):
        image_dataset(["a.parquet", "b.jpg"])
    with pytest.raises(SourceError, match=r"b.zip: sources must be images, .parquet or .tar files"):
        image_dataset(["a.jpg", "b.zip"])
    parquet.write_table(pa.table({"key": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(SourceError, match="must have the columns 'bytes' and 'source', got key"):
        read_images([str(tmp_path / "a.parquet")])
    dataset = image_dataset(["a.jpg"]).dataset
    with pytest.raises(ValueError, match="image must be a column of the dataset, got 'bytes'"):
        detect(dataset, **MODEL)
    with pytest.raises(ValueError, match="must fit into the cluster"):
        detect(dataset, **MODEL, image="path", gpus=0.5)
    with pytest.raises(TypeError, match="options must be left out"):
        detect(dataset, FaceDetector(**MODEL), min_face=10)


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_images_that_could_not_be_read_are_tried_again(tmp_path, monkeypatch, form):
    monkeypatch.setattr(ray, "nodes", lambda: [None])

    def save(found: dict[str, str | None], **options) -> ResultFolder:
        read = [
            {"source": source, "width": 8, "height": 8, "faces": [], "error": error} for source, error in found.items()
        ]
        folder = ResultFolder(str(tmp_path), form, **options)
        task = SimpleNamespace(task_idx=0)
        folder.save(SimpleNamespace(write_datasink=lambda sink, **_: sink.write([pa.Table.from_pylist(read)], task)))
        return folder

    save({"a.jpg": None, "b.jpg": "gone"})
    save({"c.jpg": "gone"}, resume=True)
    again = save({"b.jpg": None, "c.jpg": "gone"}, resume=True)
    assert (again.before.images, again.before.failed) == (1, 0)
    assert is_in(["a.jpg", "b.jpg", "c.jpg"], again.done).tolist() == [True, False, False]
    last = ResultFolder(str(tmp_path), form, resume=True)
    assert is_in(["a.jpg", "b.jpg", "c.jpg"], last.done).tolist() == [True, True, False]
    if form == "jsonl":
        assert by_name(rows(tmp_path)) == {"a.jpg": [], "b.jpg": [], "c.jpg": "gone"}
