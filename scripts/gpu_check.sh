#!/usr/bin/env bash
# Checks of pyface's CUDA code that need a GPU, in one call of about ten minutes on a machine with an NVIDIA GPU:
#
#   scripts/gpu_check.sh              builds, tests, runs the sanitizers and benchmarks, writes benchmarks/results/<gpu>.json
#   scripts/gpu_check.sh --dry-run    prints the steps, and checks as much of them as a machine without a GPU can
#
# A step that fails or runs out of time does not stop the others. All of them together end within ten minutes: steps are in
# the order of their importance, and what is left then is skipped. Logs are in gpu_check/, the outcome of each step so far in
# gpu_check/summary.txt. PYTHON chooses the interpreter. If it lacks a package that a build or most tests need, everything is
# installed, with torchvision (the benchmarks' peer). Otherwise nothing is, and only tests that need another package fail.
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
logs=gpu_check
dry_run=false
[ "${1:-}" = --dry-run ] && dry_run=true
failed=0
end=570  # seconds from the start, by which all but `keep` must end
# CMake and ninja may be the interpreter's, and the toolkit's programs are often not on PATH.
PATH=$(dirname "$(command -v "$python")"):$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
export PATH PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
# Distributions refuse to install into their own Python; this machine is for this check.
export PIP_BREAK_SYSTEM_PACKAGES=1

say() {
  echo "$@"
  $dry_run || echo "$@" >>"$logs/summary.txt"
}

# run NAME SECONDS COMMAND...: one step, its output in a log.
run() {
  local name=$1 seconds=$2 status left=$((end - SECONDS))
  shift 2
  [ "$name" = keep ] || seconds=$((left < seconds ? left : seconds))
  say "== $name (at most $seconds s): $*"
  $dry_run && return
  [ "$seconds" -gt 0 ] || { say "-- no time is left for $name"; failed=1; return; }
  # An interrupt instead of a kill: pytest then still writes the figures that it has.
  timeout --signal=INT --kill-after=10 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  say "$(tail -n 3 "$logs/$name.log")"
  if [ $status = 124 ] || [ $status = 137 ]; then
    say "-- $name ran out of time; if nothing is above, it had found nothing by then"
  fi
  [ $status = 0 ] || { say "-- $name failed with status $status"; failed=1; }
}

build() {
  if "$python" -c "import torch, cv2, safetensors, typer, rich, setuptools, pybind11, pytest, pytest_benchmark, hypothesis" \
    2>/dev/null && command -v cmake >/dev/null && command -v ninja >/dev/null; then
    run build 150 env PYFACE_CUDA=1 "$python" setup.py build_ext --inplace
  else
    run build 300 env PYFACE_CUDA=1 "$python" -m pip install -e ".[test,bench]" torchvision
  fi
}

test_with() {  # NAME SECONDS PYTEST'S ARGUMENTS...
  local name=$1 seconds=$2
  shift 2
  run "$name" "$seconds" "$python" -m pytest -q -m "cuda and not slow" --continue-on-collection-errors "$@"
}

sanitize() {  # TOOL SECONDS TESTS: small sizes, since a sanitizer makes a kernel ten to a hundred times slower
  run "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes application-only \
    "$python" -m pytest -q -x -m "cuda and not slow" tests/ops -k "$3"
}

small="not million and not five_thousand and not large and not memory and not compile and not opcheck and not graph"
if $dry_run; then
  for tool in nvidia-smi nvcc compute-sanitizer; do
    command -v $tool >/dev/null && echo "has $tool" || echo "lacks $tool"
  done
  gpu=gpu
else
  gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:] ' '[:lower:]-')
  [ -n "$gpu" ] || { echo "nvidia-smi finds no GPU here; --dry-run checks the steps without one" >&2; exit 1; }
  mkdir -p "$logs"
  : >"$logs/summary.txt"
fi

build
run info 20 "$python" -m pyface info
test_with graphs 60 tests/ops tests/models -k cuda_graph
test_with ops 80 tests/ops -k "not cuda_graph and not full_graph"
test_with tests 100 tests --ignore=tests/ops -k "not cuda_graph"
test_with benchmarks 100 benchmarks --benchmark-json "$logs/benchmarks.json"
run keep 10 "$python" benchmarks/report.py --keep "$logs/benchmarks.json" --name "$gpu" \
  --command "scripts/gpu_check.sh" --note "One run of scripts/gpu_check.sh."
sanitize memcheck 60 "$small"
sanitize racecheck 60 "$small"
sanitize synccheck 40 "$small"
# Last, as torch.compile takes most of this time.
test_with compiled 80 tests/ops -k full_graph

if $dry_run; then
  # The selections must select something.
  "$python" -m pytest -q --collect-only -m "cuda and not slow" tests/ops tests/models -k cuda_graph | tail -n 1
  "$python" -m pytest -q --collect-only -m "cuda and not slow" tests/ops -k "$small" | tail -n 1
  "$python" -m pytest -q --collect-only -m "cuda and not slow" benchmarks | tail -n 1
  exit
fi
[ $failed = 0 ] && say "all steps passed" || say "some steps failed: see $logs/"
exit $failed
