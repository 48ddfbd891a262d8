"""Makes the tables and plots of README.md, docs/ and MTCNN's card from the figures that were kept and the registry.

The figures are in benchmarks/results/*.json and pyface/weights/figures.json.

    pytest benchmarks --benchmark-json run.json
    python benchmarks/report.py --keep run.json --name my-machine     # to benchmarks/results/my-machine.json
    pyface benchmark --json benchmarks/results/my-machine-stages.json
    pytest benchmarks -m cuda_host                                    # counts of the emulated GPU
    python scripts/kernel_resources.py                                # what ptxas says; needs nvcc
    python benchmarks/report.py                                       # rewrites what stands between the markers
    python benchmarks/report.py --check                               # fails where that would change something

No figure between the markers is typed by hand. Ratios are those of one run on one machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyface.models.zoo import REGISTRY

ROOT = Path(__file__).parents[1]
RESULTS = Path("benchmarks/results")
FIGURES = Path("pyface/weights/figures.json")
README, KERNELS, PERFORMANCE = Path("README.md"), Path("docs/kernels.md"), Path("docs/performance.md")
CUDA, TRAINING, MTCNN = Path("docs/cuda.md"), Path("docs/training.md"), Path("pyface/weights/mtcnn.md")
PLOT, ACCURACY_PLOT = Path("docs/benchmarks.png"), Path("docs/accuracy.png")
KEPT = ("op", "task", "library", "precision", "device")  # of extra_info

# What the README shows: op or model, and task. Each stands for a size that detectors meet.
HEADLINES = [
    ("nms", "1,000 boxes"),
    ("nms", "5,000 boxes"),
    ("batched_nms", "5,000 boxes in 80 classes"),
    ("nms_padded", "32 x 1,000 boxes"),
    ("soft_nms", "1,000 boxes, gaussian"),
    ("decode_anchors + nms_padded", "S3FD's maps at 640, batch 8"),
    ("decode_densebox", "8 x 160 x 160 cells"),
    ("maxout_background", "8 x 160 x 160, NCHW"),
    ("face_probability", "8 x 160 x 160, NCHW"),
    ("letterbox", "8 x 1024 x 768 to 640"),
    ("crop_resize", "256 crops to 24"),
    ("pnet", "1 x 614 x 460"),
    ("convnet", "RNet, 256 crops"),
    ("convnet", "ONet, 256 crops"),
    ("assign_anchors", "8 x 34,125 anchors x 100 faces, ssh"),
    ("hard_negatives", "32 x 34,125 anchors"),
    ("balanced_sample", "32 x 34,125 anchors"),
    ("online_hard", "100,000 losses"),
    ("densebox_targets", "8 x 10 faces"),
    ("mtcnn", "end to end, 1 x 512 x 512"),
    ("mtcnn", "48 decoded images"),
]

# What the table of kernels shows: of compute capability 8.0, then of 9.0.
RESOURCES = {
    "registers": "registers",
    "shared": "bytes of shared memory",
    "spilled": "bytes spilled",
    "blocks_per_sm": "blocks per SM",
}

NETWORK = "network alone, 1 x 640 x 640"  # the task whose times the plot of accuracy shows
SUBSETS = ("easy", "medium", "hard")
PRECISIONS = ("AP@0.5", "AP@0.4")


@dataclass(frozen=True)
class Task:
    """What several libraries did in one run.

    Attributes:
        seconds: By library; median over rounds.
    """

    op: str
    task: str
    precision: str
    device: str
    seconds: dict[str, float]

    @property
    def ours(self) -> float:
        return self.seconds["pyface"]

    @property
    def peers(self) -> dict[str, float]:
        """How many times as long each peer takes, the fastest peer first."""
        ratios = {library: seconds / self.ours for library, seconds in self.seconds.items() if library != "pyface"}
        return dict(sorted(ratios.items(), key=lambda item: item[1]))


def keep(raw: dict[str, Any], command: str, note: str | None) -> dict[str, Any]:
    """What is worth keeping of pytest-benchmark's file: no single rounds, no host name."""
    facts = raw["machine_info"]
    rows = [
        {"group": of["group"], "name": of["name"]}
        | {key: of["extra_info"][key] for key in KEPT}
        | {key: _rounded(of["stats"][key]) for key in ("median", "min")}
        | {"rounds": of["stats"]["rounds"]}
        for of in raw["benchmarks"]
    ]
    date = {"date": raw["datetime"][:10]} | ({"note": note} if note else {})
    head = {"machine": facts["pyface"], "versions": facts["versions"], **date, "command": command, "unit": "seconds"}
    return head | {"benchmarks": sorted(rows, key=lambda row: (row["group"], row["median"]))}


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")


def tasks_of(run: dict[str, Any]) -> list[Task]:
    """The tasks of a run that pyface took part in."""
    seconds: dict[tuple[str, ...], dict[str, float]] = {}
    for row in run["benchmarks"]:
        if "op" in row:  # older files have names only
            task = tuple(row[key] for key in ("op", "task", "precision", "device"))
            seconds.setdefault(task, {})[row["library"]] = row["median"]
    return [Task(*task, seconds=of) for task, of in seconds.items() if "pyface" in of]


def headlines(run: dict[str, Any]) -> Iterator[Task]:
    """The tasks of the README that a run has, in float32, in its order."""
    tasks = {(task.op, task.task, task.device): task for task in tasks_of(run) if task.precision == "fp32"}
    device = "cuda" if run["machine"]["gpu"] else "cpu"
    for op, task in HEADLINES:
        if (op, task, device) in tasks:
            yield tasks[op, task, device]


def runs(results: Path, kind: str) -> list[dict[str, Any]]:
    """The kept runs: of pytest's "benchmarks", or of `pyface benchmark`, which has "models"."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    return [run for run in found if kind in run]


# --- text ------------------------------------------------------------------------------------------------------------


def time_of(seconds: float) -> str:
    """Two or three digits and a unit.

    Example:
        >>> [time_of(seconds) for seconds in (2.61e-05, 0.00123, 1.5)]
        ['26 us', '1.2 ms', '1.5 s']
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("us", 1e6)):
        if seconds * scale >= 1 or unit == "us":
            value = seconds * scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    raise AssertionError


def ratio_of(ratio: float) -> str:
    return f"{ratio:.1f}x" if ratio < 10 else f"{ratio:,.0f}x"


def about(run: dict[str, Any]) -> str:
    """One line: machine, versions, date."""
    machine = run["machine"]
    place = [f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads"]
    place += [machine["gpu"]] if machine["gpu"] else []
    versions = run.get("versions", {"torch": machine.get("torch")})
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    note = f" {run['note']}" if run.get("note") else ""
    return f"{', '.join(place)}; {names}; {run['date']}.{note}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def task_table(tasks: list[Task], *, with_precision: bool = False) -> str:
    """One row per task: our time, and how many times longer each peer takes."""
    rows = []
    for task in tasks:
        what = f"{task.task}, {task.precision}, {task.device}" if with_precision else task.task
        peers = ", ".join(f"{library} {ratio_of(ratio)}" for library, ratio in task.peers.items())
        name = " + ".join(f"`{part}`" for part in task.op.split(" + "))
        rows.append([name, what, time_of(task.ours), peers])
    return table(["", "on", "pyface", "others take"], rows)


def kernel_text(results: Path) -> str:
    """The headlines of every kept run, and the plot."""
    parts = [
        f"{task_table(list(headlines(run)))}\n\n{about(run)}"
        for run in runs(results, "benchmarks")
        if any(headlines(run))
    ]
    return "\n\n".join([*parts, f"![How many times as long the fastest peer takes]({PLOT.name})"])


def stage_text(results: Path) -> str:
    """Where the time goes, by stage."""
    parts = []
    for run in runs(results, "models"):
        stages = list(run["models"][0]["stages"])
        rows = []
        for of in run["models"]:
            total = sum(of["stages"].values())
            shares = [f"{ms:.1f} ms ({100 * ms / total:.0f} %)" for ms in of["stages"].values()]
            rows.append([f"`{of['model']}`", *shares, f"{total:.1f} ms", f"{of['pictures_per_second']:.1f}"])
        parts.append(f"{table(['', *stages, 'sum', 'images/s'], rows)}\n\n{_settings(run)} {about(run)}")
    return "\n\n".join(parts)


def _settings(run: dict[str, Any]) -> str:
    settings = run["settings"]
    where = [settings["device"], settings["precision"], f"batches of {settings['batch_size']}"]
    return f"`pyface benchmark`, {', '.join(where)}."


def all_text(results: Path) -> str:
    """Every task of every kept run."""
    parts = []
    for run in runs(results, "benchmarks"):
        tasks = sorted(tasks_of(run), key=lambda task: (task.op, task.device, task.precision))
        if tasks:
            parts.append(f"`{run['command']}` on {about(run)}\n\n{task_table(tasks, with_precision=True)}")
    return "\n\n".join(parts)


def counts_text(results: Path) -> str:
    """What every CUDA kernel costs on the emulated device, beside its floor."""
    rows = []
    for of in (row for run in runs(results, "counts") for row in run["counts"]):
        sectors = of["sectors_read"] + of["sectors_written"]
        floor = of["floor_sectors"]
        rows.append(
            [
                f"`{of['op']}`",
                of["task"],
                f"{of['launches']} / {of['floor_launches']}",
                f"{of['blocks']:,}",
                f"{sectors:,} / {floor:,} ({sectors / floor:.1f}x)",
                f"{of['atomics']:,} ({of['contention']:,})",
                f"{of['barriers']:,}",
                f"{of['steps']:,}",
            ]
        )
    head = ["", "on", "launches / floor", "blocks", "sectors / floor", "atomics (at one address)", "barriers", "steps"]
    return table(head, rows)


def resources_text(results: Path) -> str:
    """What ptxas gives every kernel, by compute capability."""
    rows = []
    for run in runs(results, "kernels"):
        for of in run["kernels"]:
            cells = [[f"{each[key]:,}" for each in of["by_capability"].values()] for key in RESOURCES]
            rows.append([f"`{of['kernel']}`", f"{of['threads']:,}", *(" / ".join(cell) for cell in cells)])
    return table(["", "threads", *RESOURCES.values()], rows)


def choice_text(results: Path) -> str:
    """A table of what every model is and when to use it, from the registry."""
    names = [*_figures(results), *REGISTRY]
    ready = [row for row in map(REGISTRY.get, dict.fromkeys(names)) if row.weights]
    rest = [row for row in REGISTRY.values() if not row.weights]
    rows = [[f"`{row.name}`", row.description, row.use_when] for row in ready]
    rows.append([", ".join(f"`{row.name}`" for row in rest), "the papers' networks", rest[0].use_when])
    return table(["name", "what it is", "use it when"], rows)


def models_text(results: Path) -> str:
    """The README's tables of what every model is, what its weights reach and how fast they are, and a plot."""
    run = next(iter(runs(results, "models")), {"models": []})
    speeds = {of["model"]: f"{of['pictures_per_second']:.1f}" for of in run["models"]}
    rows = []
    for name, of in _figures(results).items():
        wider = _first(of.get("widerface", {}), *SUBSETS)
        precision = _first(of["sets"].get("val", {}), *PRECISIONS)
        error = _first(of["sets"].get("bare", {}), "landmark_error")
        cells = [[f"{x:.3f}" for x in wider], [f"{x:.3f}" for x in precision], [f"{x:.1%}" for x in error]]
        rows.append([f"`{name}`", *(", ".join(cell) or "not measured" for cell in cells), speeds.get(name, "")])
    head = ["", "WIDER FACE val: easy, medium, hard", "faces/val: AP@0.5, AP@0.4", "landmark error", "images/s"]
    speed = f"Images per second: {_settings(run)} {about(run)}\n\n" if speeds else ""
    plot = f"![Average precision against network time]({ACCURACY_PLOT.as_posix()})"
    return f"{choice_text(results)}\n\n{table(head, rows)}\n\n{speed}{plot}"


def others_text(results: Path) -> str:
    """What other detectors reach on faces/val."""
    mtcnn = _figures(results)["mtcnn"]
    found = {
        "MTCNN's official weights at their own thresholds": next(iter(mtcnn["settings"].values())),
        "the same with scores from 0.02": next(_of_sizes(mtcnn["sets"]["val"])),
    }
    found |= {name: of["val"] for name, of in _peers(results).items()}
    return table(["on faces/val", *PRECISIONS], [[name, *_three_digits(of, PRECISIONS)] for name, of in found.items()])


def mtcnn_text(results: Path) -> str:
    """What MTCNN's card shows: settings side by side, WIDER FACE beside the paper, and its time."""
    mtcnn, peer = _figures(results)["mtcnn"], "facenet-pytorch 2.6.0"
    found = {f"pyface, {setting}": of for setting, of in mtcnn["settings"].items()}
    found[f"{peer}, same thresholds"] = _peers(results)[peer]["val"]
    found["`pyface evaluate faces --model mtcnn`: O-Net's threshold at 0.02"] = next(_of_sizes(mtcnn["sets"]["val"]))
    rows = [[name, *_three_digits(of, PRECISIONS)] for name, of in found.items()]
    wider = {"`pyface evaluate widerface --model mtcnn`": next(_of_sizes(mtcnn["widerface"])), "paper": mtcnn["paper"]}
    wider_rows = [[name, *_three_digits(of, SUBSETS)] for name, of in wider.items()]
    head = ["WIDER FACE validation, all 3,226 images", *SUBSETS]
    time = mtcnn.get("milliseconds")
    timed = [] if time is None else [f"From a decoded image of 640 px to faces: {time:.0f} ms on two CPU threads."]
    return "\n\n".join([table(["", *PRECISIONS], rows), table(head, wider_rows), *timed])


def _three_digits(values: dict[str, float], keys: tuple[str, ...]) -> list[str]:
    return [f"{values[key]:.3f}" for key in keys]


def _peers(results: Path) -> dict[str, Any]:
    return dict(json.loads((results / "peers.json").read_text(encoding="utf-8"))["peers"])


def _figures(results: Path) -> dict[str, Any]:
    """The figures of all models, the best on WIDER FACE first."""
    path = results.parents[1] / FIGURES
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return dict(sorted(figures.items(), key=lambda item: -sum(_first(item[1].get("widerface", {}), *SUBSETS))))


def _of_sizes(sizes: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures of a set, size by size, without its numbers of images and faces."""
    return (of for of in sizes.values() if isinstance(of, dict))


def _first(sizes: dict[str, Any], *keys: str) -> list[float]:
    """Figures at the first size that a set was measured at, those that are known."""
    values = next(_of_sizes(sizes), {})
    return [values[key] for key in keys if values.get(key) is not None]


TEXTS = {
    README: {"models": models_text},
    KERNELS: {"kernels": kernel_text},
    PERFORMANCE: {"stages": stage_text, "all": all_text},
    CUDA: {"counts": counts_text, "resources": resources_text},
    TRAINING: {"others": others_text},
    MTCNN: {"measured": mtcnn_text},
}


def filled(text: str, parts: dict[str, str]) -> str:
    """A page in which the text between `<!-- name: ... -->` and `<!-- /name -->` is replaced.

    Raises:
        ValueError: A marker is not there.

    Example:
        >>> filled("<!-- a: made by x -->\\nold\\n<!-- /a -->", {"a": "new"})
        '<!-- a: made by x -->\\nnew\\n<!-- /a -->'
    """
    for name, part in parts.items():
        head, opening, rest = text.partition(f"<!-- {name}:")
        comment, closing, tail = rest.partition(f"<!-- /{name} -->")
        if not opening or not closing:
            raise ValueError(f"the page has no markers <!-- {name}: ... --> and <!-- /{name} -->")
        text = head + opening + comment[: comment.index("-->") + 3] + f"\n{part}\n" + closing + tail
    return text


# --- plot ------------------------------------------------------------------------------------------------------------


def digest(results: Path) -> str:
    """A digest of what the plot shows; it is in the file, since images differ between versions of matplotlib."""
    found = [list(headlines(run)) for run in runs(results, "benchmarks")]
    shown = [[(task.op, task.task, task.peers) for task in tasks] for tasks in found if tasks]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def points(results: Path) -> dict[str, tuple[float, list[float]]]:
    """Seconds of each network in the newest run that has them, and AP on WIDER FACE by subset; of peers as well."""
    for run in sorted(runs(results, "benchmarks"), key=lambda run: run["date"], reverse=True):
        times = {of["op"]: of["median"] for of in run["benchmarks"] if _is_network(of)}
        ours = {
            name: (times[name], [next(iter(of["widerface"].values()))[subset] for subset in SUBSETS])
            for name, of in _figures(results).items()
            if name in times and of.get("widerface")
        }
        if ours and "scrfd_2.5g" in times:
            return ours | {
                name: (times["scrfd_2.5g"] * of["time"], [of["widerface"][subset] for subset in SUBSETS])
                for name, of in _peers(results).items()
                if "time" in of
            }
    return {}


def _is_network(row: dict[str, Any]) -> bool:
    kind = tuple(row.get(key) for key in ("task", "precision", "device"))
    return kind == (NETWORK, "fp32", "cpu") and row["library"] in ("pyface", "onnxruntime")


def accuracy_digest(results: Path) -> str:
    """A digest of what the plot of accuracy shows; see `digest`."""
    return hashlib.sha256(json.dumps(points(results)).encode()).hexdigest()


def draw_accuracy(path: Path, results: Path) -> None:
    """Average precision against milliseconds of the network, a panel for each subset of WIDER FACE."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    panels, peers = figure.subplots(1, len(SUBSETS), sharex=True), _peers(results)
    for k, (axes, subset) in enumerate(zip(panels, SUBSETS, strict=True)):
        for name, (seconds, precision) in points(results).items():
            colour = "#b5533c" if name in peers else "#3b6ea5"
            axes.plot(1000 * seconds, precision[k], "s" if name in peers else "o", color=colour)
            below = name not in peers  # peers' names above, ours below, so that they do not overlap
            place = {"xytext": (0, -5 if below else 5), "va": "top" if below else "bottom", "ha": "center"}
            axes.annotate(name, (1000 * seconds, precision[k]), textcoords="offset points", fontsize=7, **place)
        axes.set_title(subset, fontsize=9)
        axes.margins(0.25)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("AP, WIDER FACE val, 640 px", fontsize=8)
    figure.supxlabel("ms of the network, 640 x 640, two threads; squares: published AP of SCRFD", fontsize=8)
    figure.savefig(path, dpi=100, metadata={"Software": "", "Description": accuracy_digest(results)})


def draw(path: Path, results: Path) -> None:
    """How many times as long the fastest peer takes, with one panel per run."""
    from matplotlib.figure import Figure

    drawn = [run for run in runs(results, "benchmarks") if any(headlines(run))]
    most = max((sum(1 for _ in headlines(run)) for run in drawn), default=1)
    figure = Figure(figsize=(8, (0.8 + 0.27 * most) * max(1, len(drawn))), layout="constrained")
    for axes, run in zip(figure.subplots(len(drawn), squeeze=False)[:, 0] if drawn else [], drawn, strict=True):
        tasks = [task for task in headlines(run) if task.peers]
        labels, ratios = [], []
        for task in tasks:
            fastest, ratio = next(iter(task.peers.items()))
            labels.append(f"{task.op}, {task.task}")
            ratios.append(ratio)
            text = f"{ratio_of(ratio)}  {fastest.partition(',')[0]}"
            axes.text(max(ratio, 1) * 1.06, len(ratios) - 1, text, va="center", fontsize=7)
        colours = ["#3b6ea5" if ratio >= 1 else "#b5533c" for ratio in ratios]
        axes.barh(labels, [ratio - 1 for ratio in ratios], left=1, color=colours, height=0.7)
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_xlim(min(0.5, *ratios) * 0.9, max(ratios) * 25)
        axes.invert_yaxis()
        axes.tick_params(labelsize=7)
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        where = f"{run['machine']['gpu'] or run['machine']['cpu']}, {run['date']}"
        axes.set_title(f"Time of the fastest peer over pyface's, log scale\n{where}", fontsize=9)
    figure.savefig(path, dpi=100, metadata={"Software": "", "Description": digest(results)})


# --- command ---------------------------------------------------------------------------------------------------------


def stale(root: Path) -> list[str]:
    """The pages, and the plot, that do not show what the kept results say."""
    results = root / RESULTS
    found = []
    for page, texts in TEXTS.items():
        text = (root / page).read_text(encoding="utf-8")
        if text != filled(text, {name: make(results) for name, make in texts.items()}):
            found.append(page.as_posix())
    for plot, shown in ((PLOT, digest), (ACCURACY_PLOT, accuracy_digest)):
        if not (root / plot).is_file() or shown(results).encode() not in (root / plot).read_bytes():
            found.append(plot.as_posix())
    return found


def rewrite(root: Path) -> None:
    """Brings the pages and the plot up to date."""
    results = root / RESULTS
    for page, texts in TEXTS.items():
        text = (root / page).read_text(encoding="utf-8")
        (root / page).write_text(filled(text, {name: make(results) for name, make in texts.items()}), encoding="utf-8")
    draw(root / PLOT, results)
    draw_accuracy(root / ACCURACY_PLOT, results)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail where something is out of date")
    parser.add_argument("--keep", type=Path, metavar="RUN.json", help="pytest-benchmark's file to add to the results")
    parser.add_argument("--name", help="with --keep: the machine, as a file name")
    parser.add_argument("--command", default="pytest benchmarks", help="with --keep: how the run was started")
    parser.add_argument("--note", help="with --keep: a sentence on the circumstances")
    options = parser.parse_args(arguments)
    if options.keep:
        if not options.name:
            parser.error("--keep needs --name, such as amd-epyc-2-cores")
        run = keep(json.loads(options.keep.read_text(encoding="utf-8")), options.command, options.note)
        target = root / RESULTS / f"{options.name}.json"
        target.write_text(json.dumps(run, indent=1) + "\n", encoding="utf-8")
    if options.check:
        pages = stale(root)
        if pages:
            sys.exit(f"out of date: {', '.join(pages)}; run python benchmarks/report.py")
    else:
        rewrite(root)


if __name__ == "__main__":
    main()
