"""benchmarks/report.py: from kept runs to pages, and that README.md shows what the kept runs say."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from pyface import ops

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def report():
    """The script as a module; benchmarks/ is not a package."""
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    module = sys.modules["benchmark_report"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(library: str, median: float, op: str = "nms", task: str = "1,000 boxes", precision: str = "fp32") -> dict:
    """A benchmark as pytest-benchmark writes it."""
    facts = {"op": op, "task": task, "library": library, "precision": precision, "device": "cpu", "threads": 2}
    return {
        "group": f"{op}, {task}, {precision}",
        "name": f"test[{library}]",
        "extra_info": facts,
        "stats": {"median": median, "min": median, "rounds": 3, "data": [median] * 3},
    }


@pytest.fixture
def raw() -> dict:
    machine = {"cpu": "Some CPU", "cores": 2, "threads": 2, "gpu": None, "python": "3.11"}
    return {
        "machine_info": {"node": "secret-host", "pyface": machine, "versions": {"torch": "2.13.0"}},
        "datetime": "2026-11-21T10:00:00+00:00",
        "benchmarks": [
            row("slow peer", 0.012345678),
            row("pyface", 0.0001),
            row("quick peer", 0.0002),
            row("pyface", 3e-5, precision="fp16"),
            row("peer alone", 1.0, op="soft_nms"),
        ],
    }


@pytest.fixture
def project(report, raw, tmp_path):
    """A copy with one kept run, one of `pyface benchmark`, and pages with markers."""
    results = tmp_path / report.RESULTS
    results.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (results / "some.json").write_text(json.dumps(report.keep(raw, "pytest benchmarks", "A note.")))
    stages = {"decode": 1.0, "letterbox": 1.0, "network": 7.0, "post-processing": 1.0}
    model = {
        "model": "s3fd_lite",
        "random_weights": False,
        "pictures_per_second": 12.5,
        "stages": stages,
        "peak_rss": 2**30,
    }
    machine = raw["machine_info"]["pyface"] | {"torch": "2.13.0"}
    settings = {"device": "cpu", "batch_size": 8, "size": None, "precision": "fp32"}
    run = {"date": "2026-11-21", "machine": machine, "settings": settings, "models": [model]}
    (results / "some-stages.json").write_text(json.dumps(run))
    network = row("pyface", 0.012, "s3fd_lite", report.NETWORK), row("onnxruntime", 0.02, "scrfd_2.5g", report.NETWORK)
    accuracy = report.keep(raw | {"benchmarks": list(network)}, "pytest benchmarks", None)
    (results / "networks.json").write_text(json.dumps(accuracy))
    counted = {"sectors_read": 1500, "sectors_written": 300, "floor_sectors": 1200, "launches": 3, "floor_launches": 1}
    counted |= {"op": "nms", "task": "1,000 boxes", "blocks": 8, "atomics": 2032, "contention": 32}
    (results / "counts.json").write_text(json.dumps({"counts": [counted | {"barriers": 92, "steps": 1038}]}))
    resources = [{"registers": n, "shared": 0, "spilled": 0, "blocks_per_sm": 2} for n in (40, 48)]
    kernel = {
        "kernel": "nms: k<1>",
        "threads": 1024,
        "by_capability": {"8.0": resources[0], "9.0": resources[1]},
    }
    (results / "resources.json").write_text(json.dumps({"kernels": [kernel]}))
    sets = {"val": {"faces": 855, "640": {"AP@0.5": 0.9031, "AP@0.4": 0.9512}}}
    wider = {"640": {"easy": 0.88, "medium": 0.86, "hard": 0.67}}
    figures = {"s3fd_lite": {"parameters": 750_000, "sets": sets, "widerface": wider}}
    precision = {"AP@0.5": 0.7, "AP@0.4": 0.75}
    subsets = {"easy": 0.5, "medium": 0.4, "hard": 0.3}
    figures["mtcnn"] = {
        "sets": {"val": {"faces": 855, "own": precision}},
        "widerface": {"own": subsets},
        "settings": {"usual": {"AP@0.5": 0.6, "AP@0.4": 0.65}},
        "paper": subsets,
    }
    peers = {"facenet-pytorch 2.6.0": {"val": precision}}
    peers["SCRFD-2.5g"] = {"val": precision, "time": 1.0, "widerface": {"easy": 0.9, "medium": 0.8, "hard": 0.7}}
    peers["SCRFD-500m"] = peers["SCRFD-2.5g"] | {"time": 0.25}
    (results / "peers.json").write_text(json.dumps({"peers": peers}))
    (tmp_path / report.FIGURES).parent.mkdir(parents=True)
    (tmp_path / report.FIGURES).write_text(json.dumps(figures))
    for page, texts in report.TEXTS.items():
        markers = "".join(f"<!-- {name}: made by x -->\n<!-- /{name} -->\nby hand\n" for name in texts)
        (tmp_path / page).write_text(markers)
    return tmp_path


def test_keeps_what_matters(report, raw):
    kept = report.keep(raw, "pytest benchmarks", None)
    text = json.dumps(kept)
    assert "secret-host" not in text
    assert "note" not in kept
    assert kept["date"] == "2026-11-21"
    medians = [of["median"] for of in kept["benchmarks"] if of["precision"] == "fp32" and of["op"] == "nms"]
    assert medians == [0.0001, 0.0002, 0.01235]  # by group, then time; four digits


def test_ratios(report, raw):
    half, single = report.tasks_of(report.keep(raw, "", None))  # none where pyface took no part
    assert (half.op, half.precision, half.peers) == ("nms", "fp16", {})
    assert list(single.peers) == ["quick peer", "slow peer"]
    assert single.peers["quick peer"] == pytest.approx(2.0)


def test_pages(report, project):
    assert report.stale(project) == [
        "README.md",
        "docs/kernels.md",
        "docs/performance.md",
        "docs/cuda.md",
        "docs/training.md",
        "pyface/weights/mtcnn.md",
        "docs/benchmarks.png",
        "docs/accuracy.png",
    ]
    with pytest.raises(SystemExit, match="out of date"):
        report.main(["--check"], project)
    report.main([], project)
    report.main(["--check"], project)
    page, kernels = (project / "README.md").read_text(), (project / "docs" / "kernels.md").read_text()
    assert "| `nms` | 1,000 boxes | 100 us | quick peer 2.0x, slow peer 123x |" in kernels
    assert "Some CPU, 2 cores, 2 threads; torch 2.13.0; 2026-11-21. A note." in kernels
    assert "| `s3fd_lite` | 0.880, 0.860, 0.670 | 0.903, 0.951 | not measured | 12.5 |" in page
    assert page.count("by hand") == 1
    assert "| `mtcnn` | Cascade of three small networks" in page
    assert "7.0 ms (70 %)" in (project / "docs" / "performance.md").read_text()
    cuda = (project / "docs" / "cuda.md").read_text()
    assert "| `nms` | 1,000 boxes | 3 / 1 | 8 | 1,800 / 1,200 (1.5x) | 2,032 (32) | 92 | 1,038 |" in cuda
    assert "| `nms: k<1>` | 1,024 | 40 / 48 | 0 / 0 | 0 / 0 | 2 / 2 |" in cuda
    assert "| the same with scores from 0.02 | 0.700 | 0.750 |" in (project / "docs" / "training.md").read_text()
    card = (project / "pyface" / "weights" / "mtcnn.md").read_text()
    assert "| pyface, usual | 0.600 | 0.650 |" in card
    assert "| paper | 0.500 | 0.400 | 0.300 |" in card
    (project / "README.md").write_text(page.replace("0.880", "0.890"))
    assert report.stale(project) == ["README.md"]


def test_points_of_the_plot_of_accuracy(report, project):
    found = report.points(project / report.RESULTS)
    assert found["s3fd_lite"] == (0.012, [0.88, 0.86, 0.67])
    assert found["SCRFD-2.5g"] == (0.02, [0.9, 0.8, 0.7])
    assert found["SCRFD-500m"][0] == pytest.approx(0.005)


def test_keep_from_the_command_line(report, project, raw):
    (project / "run.json").write_text(json.dumps(raw))
    with pytest.raises(SystemExit):
        report.main(["--keep", str(project / "run.json")], project)
    report.main(["--keep", str(project / "run.json"), "--name", "other"], project)
    assert (project / report.RESULTS / "other.json").is_file()
    assert report.stale(project) == []


def test_missing_markers_are_named(report):
    with pytest.raises(ValueError, match="<!-- models: "):
        report.filled("nothing here", {"models": ""})


def test_the_pages_are_up_to_date(report):
    assert report.stale(ROOT) == [], "run python benchmarks/report.py"


def test_every_op_has_figures(report):
    kept = report.runs(ROOT / report.RESULTS, "benchmarks")
    timed = {op for run in kept for task in report.tasks_of(run) for op in task.op.split(" + ")}
    public = {name for name in ops.__all__ if name.islower()}  # the others are classes
    assert public <= timed


def test_sentences_of_the_readme_name_the_measured_sets(report):
    sets = json.loads((ROOT / report.FIGURES).read_text())["s3fd_lite"]["sets"]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"faces/val has {sets['val']['pictures']} photos with {sets['val']['faces']} faces" in text
    assert f"on {sets['bare']['faces']} bare faces" in text
