#!/usr/bin/env bash
# Checks of pyface's CUDA code that need a GPU, in one call of about ten minutes on a machine with an NVIDIA GPU:
#
#   scripts/gpu_check.sh              builds, tests, runs the sanitizers and benchmarks, writes benchmarks/results/<gpu>.json
#   scripts/gpu_check.sh --dry-run    prints the steps, and checks as much of them as a machine without a GPU can
#
# A step that fails or runs out of time does not stop the others. All of them together end within ten minutes: what is left
# then is skipped, of the sanitizers first, as they come last. Logs are in gpu_check/. PYTHON chooses the interpreter; if it
# lacks a package that the tests need, all are installed, with torchvision (the benchmarks' peer).
set -uo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
logs=gpu_check
dry_run=false
[ "${1:-}" = --dry-run ] && dry_run=true
failed=0
end=580  # seconds from the start, by which all but `keep` must end

# run NAME SECONDS COMMAND...: one step, its output in a log.
run() {
  local name=$1 seconds=$2 status left=$((end - SECONDS))
  shift 2
  [ "$name" = keep ] || seconds=$((left < seconds ? left : seconds))
  echo "== $name (at most $seconds s): $*"
  $dry_run && return
  [ "$seconds" -gt 0 ] || { echo "-- no time is left for $name"; failed=1; return; }
  # An interrupt, not an end: pytest then still writes the figures that it has.
  timeout --signal=INT --kill-after=5 "$seconds" "$@" >"$logs/$name.log" 2>&1
  status=$?
  tail -n 3 "$logs/$name.log"
  [ $status = 124 ] || [ $status = 137 ] && echo "-- $name ran out of time; nothing above means that it found nothing so far"
  [ $status = 0 ] || failed=1
}

build() {
  if "$python" -c "import torch, pybind11, ninja, pytest, pytest_benchmark, hypothesis" 2>/dev/null; then
    run build 150 env PYFACE_CUDA=1 "$python" -m pip install --no-build-isolation --no-deps -e .
  else
    run build 300 env PYFACE_CUDA=1 "$python" -m pip install -e ".[test,bench]" torchvision
  fi
}

sanitize() {  # TOOL SECONDS TESTS: small sizes, since a sanitizer makes a kernel ten to a hundred times slower
  run "$1" "$2" compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes application-only \
    "$python" -m pytest -q -x -m cuda tests/ops -k "$3"
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
fi

$dry_run || mkdir -p "$logs"
build
run info 20 "$python" -m pyface info
run graphs 60 "$python" -m pytest -q -m cuda -k graph
run tests 120 "$python" -m pytest -q -m cuda -k "not graph"
run benchmarks 100 "$python" -m pytest -q benchmarks -m cuda -k "not slow" --benchmark-json "$logs/benchmarks.json"
run keep 10 "$python" benchmarks/report.py --keep "$logs/benchmarks.json" --name "$gpu" \
  --command "scripts/gpu_check.sh" --note "One run of scripts/gpu_check.sh."
sanitize memcheck 60 "$small"
sanitize racecheck 60 "$small"
sanitize synccheck 40 "$small"

if $dry_run; then
  # The selections must select something.
  "$python" -m pytest -q --collect-only -m cuda -k graph | tail -n 1
  "$python" -m pytest -q --collect-only -m cuda tests/ops -k "$small" | tail -n 1
  "$python" -m pytest -q --collect-only benchmarks -m cuda -k "not slow" | tail -n 1
  exit
fi
[ $failed = 0 ] && echo "all steps passed" || echo "some steps failed: see $logs/"
exit $failed
