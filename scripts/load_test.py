"""Load-tests `pyface serve` on this machine: requests per second and latency beside plain `detector(list)`.

python scripts/load_test.py                   # 1, 8 and 32 clients, 20 s each; run nothing else meanwhile
python scripts/load_test.py --soak 600        # then 8 clients for 10 minutes with 1 % hostile uploads, memory watched

Starts a service of its own on a free loopback port. Each client is a thread that posts one image after the other. The
detector alone runs first, in this process, and has ended when the service starts.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np

EXAMPLES = Path(__file__).parents[1] / "examples"
HOSTILE_SHARE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, default=EXAMPLES, help="folder of JPEG images")
    parser.add_argument("--model", default="s3fd_lite")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=20.0, help="per number of clients")
    parser.add_argument("--soak", type=float, default=0.0, help="seconds with hostile uploads")
    options = parser.parse_args()
    files = [path.read_bytes() for path in sorted(options.images.glob("*.jpg"))[:64]]
    assert files, f"{options.images} has no .jpg file"

    alone, alone_cpu = in_another_process(options, files)
    print(f"detector(list): {alone:.1f} images/s, {1000 * alone_cpu:.0f} ms CPU per image")
    with running_service(options) as (address, process):
        post_for(address, files, 1, 3.0)  # until everything is loaded
        for clients in options.clients:
            before = cpu_seconds(process.pid)
            statuses, seconds, duration = post_for(address, files, clients, options.seconds)
            cpu = (cpu_seconds(process.pid) - before) / statuses[200]
            print(format_line(clients, statuses, seconds, duration, alone))
            print(f"             {1000 * cpu:.0f} ms CPU per request, {alone_cpu / cpu:.2f} of the rate per CPU second")
        if options.soak:
            soak(address, process, files, options.soak)


def cpu_seconds(process: int) -> float:
    """Returns the CPU seconds that a process has used; they are comparable even if the machine is not idle."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def in_another_process(options: argparse.Namespace, files: list[bytes]) -> tuple[float, float]:
    """Returns what `detect_for` does, measured in a process whose memory is then free again."""
    from multiprocessing import get_context

    with get_context("spawn").Pool(1) as pool:
        return pool.apply(detect_for, (options.model, options.device, files, options.seconds))


def detect_for(model: str, device: str, files: list[bytes], seconds: float) -> tuple[float, float]:
    """Runs a detector on lists of images for some time; returns images per second and CPU seconds per image."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the `pyface` command does
    from pyface import FaceDetector

    detector = FaceDetector(model, device=device)
    batch = (files * (64 // len(files) + 1))[:64]
    detector(batch)
    done, start, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - start < seconds:
        detector(batch)
        done += len(batch)
    return done / (time.perf_counter() - start), (time.process_time() - cpu) / done


@contextmanager
def running_service(options: argparse.Namespace) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Runs `pyface serve`; yields its address and its process."""
    command = [sys.executable, "-m", "pyface", "serve", "--port", "0", "--model", options.model]
    process = subprocess.Popen([*command, "--device", options.device], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        yield address[0], process
    finally:
        process.terminate()
        process.wait()


def post_for(
    address: str, files: list[bytes], clients: int, seconds: float, choose: Callable[[int], bytes] | None = None
) -> tuple[Counter[int], list[float], float]:
    """Posts from a number of clients; returns the count of each status, each request's seconds, and the duration."""
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    lock = threading.Lock()
    start = time.perf_counter()

    def post(client: int) -> None:
        with httpx.Client(base_url=address, timeout=60, trust_env=False) as session:
            number = client
            while time.perf_counter() - start < seconds:
                begin = time.perf_counter()
                file = choose(number) if choose else files[number % len(files)]
                status = session.post("/detect", content=file).status_code
                with lock:
                    statuses[status] += 1
                    latencies.append(time.perf_counter() - begin)
                number += clients

    threads = [threading.Thread(target=post, args=[client]) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses, latencies, time.perf_counter() - start


def format_line(clients: int, statuses: Counter[int], latencies: list[float], duration: float, alone: float) -> str:
    """Formats the figures of one number of clients."""
    rate = statuses[200] / duration
    p50, p99 = (1000 * np.quantile(latencies, q) for q in (0.5, 0.99))
    return (
        f"{clients:3} clients: {rate:.1f} requests/s, {rate / alone:.2f} of the detector alone; "
        f"p50 {p50:.0f} ms, p99 {p99:.0f} ms; statuses {json.dumps(statuses)}"
    )


def soak(address: str, process: subprocess.Popen[str], files: list[bytes], seconds: float) -> None:
    """Posts for a long time, a share of it hostile, in ten parts, and prints the service's memory after each."""
    hostile = hostile_files(files[0])

    def choose(number: int) -> bytes:
        every = round(1 / HOSTILE_SHARE)
        return hostile[number // every % len(hostile)] if number % every == 0 else files[number % len(files)]

    total: Counter[int] = Counter()
    for part in range(1, 11):
        total += post_for(address, files, 8, seconds / 10, choose)[0]
        text = httpx.get(f"{address}/metrics", trust_env=False).text
        memory = re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)
        assert memory, text
        print(f"soak, {part} of 10: {float(memory[1]) / 2**20:.0f} MiB, statuses {json.dumps(total)}")
    assert process.poll() is None, "the service has ended"
    assert set(total) <= {200, 422}, "only hostile uploads may be refused, and only as unreadable"


def hostile_files(good: bytes) -> list[bytes]:
    """Uploads that must be refused: empty, cut, text, and headers that promise too many pixels."""
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (2**16).to_bytes(4, "big") * 2 + b"\x08\2\0\0\0"
    return [b"", good[:2000], good[: len(good) // 2], b"no picture", bomb, b"P6 99999 99999 255\n", bytes(2**20)]


if __name__ == "__main__":
    main()
