"""Measures the CPU seconds per image of the default number of threads beside one thread, on busy cores.

python scripts/cpu_seconds.py             # loads every core with a busy process first
python scripts/cpu_seconds.py --load 0    # on a machine that is busy already
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

GALLERY = Path(__file__).parents[1] / "examples" / "gallery.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", type=int, default=os.cpu_count(), help="busy processes beside the detector")
    parser.add_argument("--images", type=int, default=10, help="per turn")
    parser.add_argument("--turns", type=int, default=5, help="of either, in turns")
    options = parser.parse_args()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.load)]
    try:
        measure(options.images, options.turns)
    finally:
        for process in busy:
            process.kill()


def measure(images: int, turns: int) -> None:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command `pyface` does; before torch is imported
    import pyface

    detectors = {threads: pyface.FaceDetector(device="cpu", threads=threads) for threads in (1, None)}
    for detector in detectors.values():
        detector(GALLERY)
    seconds: dict[int | None, list[float]] = {threads: [] for threads in detectors}
    for _ in range(turns):
        for threads, detector in detectors.items():
            time.sleep(0.3)  # the default depends on what other processes have used lately
            before = time.process_time()
            for _ in range(images):
                detector(GALLERY)
            seconds[threads].append((time.process_time() - before) / images)
    one, default = median(seconds[1]), median(seconds[None])
    print(f"CPU seconds per image: {one:.3f} with one thread, {default:.3f} by default, ratio {default / one:.2f}")
    print("load of the machine:", *os.getloadavg())


if __name__ == "__main__":
    main()
