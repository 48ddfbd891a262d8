"""Runs inputs in worker processes that may die, hang or run out of memory without ending the run."""

import importlib
import multiprocessing
import os
import resource
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

TARGETS = ("images", "files", "checkpoints", "ops")
SECONDS = 60.0  # for one input, on a machine that may be busy
MEMORY = 2**30  # bytes, beyond what the worker uses before its first input


class Finding(NamedTuple):
    """An input that went wrong: `kind` is crash, hang, memory, wrong exception or silent error."""

    number: int
    kind: str
    text: str


def work(target: str, first: int, count: int, pipe: Connection) -> None:
    """Runs inputs in this process, and reports each (number, outcome, finding)."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    os.dup2(sys.stderr.fileno(), 2)  # OpenCV, libtiff and libpng write there
    run = importlib.import_module(f"tests.fuzz.{target}").run
    run(np.random.default_rng([TARGETS.index(target), 0]))  # imports what is imported late
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
    for number in range(first, first + count):
        pipe.send((number, None, None))
        try:
            outcome, finding = run(np.random.default_rng([TARGETS.index(target), number])), None
        except MemoryError:
            outcome, finding = "memory", Finding(number, "memory", traceback.format_exc())
        except BaseException as error:
            kind = "silent error" if type(error).__name__ == "Fault" else "wrong exception"
            outcome, finding = kind, Finding(number, kind, traceback.format_exc())
        pipe.send((number, outcome, finding))
    pipe.close()


def outcomes(target: str, first: int, count: int) -> Iterator[tuple[str, Finding | None]]:
    """Yields the outcome of each input; a dead or stopped worker is one too."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the workers: their inputs are small, and waiting threads take cores
    context = multiprocessing.get_context("spawn")
    number = first
    while number < first + count:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(target, number, first + count - number, theirs))
        worker.start()
        theirs.close()
        begun = None
        try:
            while ours.poll(SECONDS if begun is not None else 10 * SECONDS):
                begun, outcome, finding = ours.recv()
                if outcome is not None:
                    yield outcome, finding
                    number = begun + 1
            outcome, text = "hang", f"no answer after {SECONDS:g} s"
        except EOFError:
            worker.join()
            outcome, text = "crash", f"exit status {worker.exitcode}"
            if begun is None:
                raise RuntimeError(f"the worker for {target} does not start ({text})") from None
        finally:
            worker.kill()
            worker.join()
        if number < first + count:
            yield outcome, Finding(number, outcome, text)
            number += 1
