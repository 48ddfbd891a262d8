"""Runs many small images, some of them broken, through pyface, and watches memory, open files and results.

python scripts/soak.py                                 # 100,000 images: `pyface detect`, then 8 threads
python scripts/soak.py --images 2000 --settled 1000    # a short form

Exits with 1 if an image has no line or more than one, a broken image has no error or a whole one has, memory grows by
more than 5 % after the first images, or files stay open. Needs /proc, so it runs on Linux only.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

GALLERY = Path(__file__).parents[1] / "examples" / "gallery.jpg"
GROWTH = 0.05  # of resident memory after the first images
KINDS = 256  # of different images; the files are links to them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--settled", type=int, default=5_000, help="images after which memory may no longer grow")
    parser.add_argument("--threads", type=int, default=8, help="that use one detector")
    parser.add_argument("--only", choices=("detect", "threads"))
    parser.add_argument("--detect-in-threads", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.detect_in_threads:
        detect_in_threads(*options.detect_in_threads, options.threads)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary, "images"), Path(temporary, "results.jsonl")
        broken = write_images(folder, options.images)
        commands = {
            "detect": ["-m", "pyface", "detect", folder, "-o", results, "--size", "native", "--device", "cpu"],
            "threads": [__file__, "--threads", options.threads, "--detect-in-threads", folder, results],
        }
        faults = [
            fault
            for name, command in commands.items()
            if options.only in (None, name)
            for fault in soak(name, list(map(str, command)), results, options, broken)
        ]
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(bool(faults))


def write_images(folder: Path, number: int) -> dict[str, bool]:
    """Writes images of several sizes and formats. Returns for each name whether the file is broken."""
    kinds = folder.with_name("kinds")
    folder.mkdir()
    kinds.mkdir()
    contents = [make_image(random.Random(k)) for k in range(min(KINDS, number))]
    for k, (content, _) in enumerate(contents):
        (kinds / str(k)).write_bytes(content)
    broken = {}
    for k in range(number):
        name = f"{k:07}.jpg"  # pyface reads images by their content
        os.link(kinds / str(k % KINDS), folder / name)
        broken[name] = contents[k % KINDS][1]
    return broken


def make_image(rng: random.Random) -> tuple[bytes, bool]:
    """Encodes a part of the gallery with sides of 16 to 160 pixels, and breaks one in ten."""
    with Image.open(GALLERY) as gallery:
        width, height = rng.randint(16, 160), rng.randint(16, 160)
        left, top = rng.randint(0, gallery.width - width), rng.randint(0, gallery.height - height)
        image = gallery.crop((left, top, left + width, top + height)).convert(rng.choice(["RGB", "RGB", "L"]))
    encoded = io.BytesIO()
    image.save(encoded, rng.choice(["JPEG", "JPEG", "PNG", "WebP", "BMP"]))
    content = encoded.getvalue()
    if rng.random() >= 0.1:
        return content, False
    return rng.choice([b"", b"no image", content[: len(content) // 2], rng.randbytes(500)]), True


def detect_in_threads(folder: Path, results: Path, threads: int) -> None:
    """One detector used by several threads, each of which takes the next image as soon as it has done one."""
    import pyface

    detector = pyface.FaceDetector(size="native", device="cpu", threads=1)
    paths, lock = iter(sorted(folder.iterdir())), threading.Lock()

    def work(file: io.TextIOBase) -> None:
        while True:
            with lock:
                path = next(paths, None)
            if path is None:
                return
            line: dict[str, object] = {"source": str(path)}
            try:
                line["faces"] = len(detector(path))
            except pyface.ImageError as error:
                line["error"] = str(error)
            with lock:
                file.write(json.dumps(line) + "\n")
                file.flush()

    with results.open("w", encoding="utf-8") as file:
        workers = [threading.Thread(target=work, args=(file,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


@dataclass
class Watched:
    """What was measured of a process after its first results."""

    memory: list[int] = field(default_factory=list)  # bytes
    files: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        if pages:  # a process that has ended has none
            self.memory.append(pages * os.sysconf("SC_PAGE_SIZE"))
            self.files.append(len(os.listdir(f"/proc/{pid}/fd")))


def soak(
    name: str, command: list[str], results: Path, options: argparse.Namespace, broken: dict[str, bool]
) -> list[str]:
    """Runs a command and prints what was measured. Returns its faults."""
    results.unlink(missing_ok=True)
    watched, started = Watched(), time.monotonic()
    messages = results.with_name("messages.txt")  # a pipe that nobody reads would fill up
    with messages.open("wb") as file, subprocess.Popen([sys.executable, *command], stderr=file) as process:
        while process.poll() is None:
            if results.exists() and count_lines(results) >= options.settled:
                try:
                    watched.sample(process.pid)
                except (FileNotFoundError, ProcessLookupError):
                    break
            time.sleep(0.2)
    message = messages.read_text(encoding="utf-8", errors="replace").strip()[-400:]
    if not results.exists() or not watched.memory:
        return [f"{name}: too few results to measure; {message}"]
    first, highest = watched.memory[0], max(watched.memory)
    print(
        f"{name}: {len(broken)} images, {sum(broken.values())} broken, {time.monotonic() - started:.0f} s; "
        f"memory {first / 2**20:.1f} MiB, at most {highest / 2**20:.1f} MiB ({highest / first - 1:+.1%}); "
        f"open files {watched.files[0]}, at most {max(watched.files)}, in the end {watched.files[-1]}",
        flush=True,
    )
    faults = check_results(results, broken)
    if process.returncode not in (0, 1):  # 1: some images could not be read
        faults.append(f"ended with {process.returncode}: {message}")
    if highest > (1 + GROWTH) * first:
        faults.append(f"memory grew from {first} to {highest} bytes")
    if watched.files[-1] > watched.files[0] + options.threads:  # files that are being read at that moment
        faults.append(f"open files grew from {watched.files[0]} to {watched.files[-1]}")
    return [f"{name}: {fault}" for fault in faults]


def count_lines(path: Path) -> int:
    """Counts lines without reading those counted before."""
    position, lines = _counted.get(path, (0, 0))
    if path.stat().st_size < position:
        position, lines = 0, 0
    with path.open("rb") as file:
        file.seek(position)
        new = file.read()
    _counted[path] = position + len(new), lines + new.count(b"\n")
    return _counted[path][1]


_counted: dict[Path, tuple[int, int]] = {}


def check_results(results: Path, broken: dict[str, bool]) -> list[str]:
    """Returns which images do not have exactly one correct line."""
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    counts = Counter(Path(line["source"]).name for line in lines)
    wrong = [name for name in broken if counts[name] != 1]
    wrong += [
        Path(line["source"]).name for line in lines if bool(line.get("error")) != broken.get(Path(line["source"]).name)
    ]
    return [f"{len(wrong)} images without exactly one correct line, such as {wrong[0]}"] if wrong else []


if __name__ == "__main__":
    main()
