"""Looks for inputs that pyface does not survive: `python -m tests.fuzz images --count 100000`.

Each input is made from its number alone, so `--first NUMBER --count 1` repeats a finding. A worker process reads them
one after another; the run continues in a new one if it dies or takes longer than the limit.
"""

import argparse
import json
import sys
import time
from collections import Counter

from tests.fuzz.runner import TARGETS, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--first", type=int, default=1, help="number of the first input")
    parser.add_argument("--count", type=int, default=1000, help="number of inputs")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    start = time.monotonic()
    for outcome, finding in outcomes(options.target, options.first, options.count):
        counts[outcome] += 1
        if finding is not None:
            place = "\n".join(finding.text.splitlines()[-6:])
            shown[place] += 1
            if shown[place] <= 3:
                print(f"{options.target} {finding.number}: {finding.kind}\n{place}\n", flush=True)
        is_over = time.monotonic() - start > options.seconds
        if is_over or counts.total() % 1000 == 0 or counts.total() == options.count:
            print(json.dumps({"target": options.target, "inputs": counts.total(), **counts}), flush=True)
        if is_over:
            break
    return int(counts.keys() - {"read", "refused"} != set())


if __name__ == "__main__":
    sys.exit(main())
