#!/usr/bin/env bash
# All that is measured and shown on a GPU, in ten minutes: several ranks on one GPU, the step of ViT-L/14 and ViT-B/16 beside PyTorch's eager and
# compiled one, what a checkpoint costs, kernels, compute-sanitizer over a step.
#
#   bench/gpu.sh                       run it; programs are built first where cargo is
#   bench/gpu.sh programs FOLDER       build them into FOLDER, for a machine with a GPU and without Rust
#   bench/gpu.sh kinds                 name the parts
#
#   LCL_GPU_BENCH_DEVICE    cuda (default), or cpu: the same parts in tiny sizes, which shows that the script works and nothing else
#   LCL_GPU_BENCH_PARTS     those to run, separated by spaces; default: all
#   LCL_GPU_BENCH_PROGRAMS  folder with the programs, when they are built already
#   LCL_GPU_BENCH_RESULTS   folder for results; default: target/gpu-results
#   LCL_GPU_BENCH_SECONDS   for everything; default 570. A part that does not fit any more is left out
#   LCL_GPU_BENCH_PYTHON    a Python with PyTorch 2.11; default: python3, else the one of `bench/run.sh`
#
# Each part writes its output to RESULTS/PART.md as it comes; RESULTS/summary.md has a line for each. A part that fails or takes too long does
# not keep the others from running, and makes the exit status 1. What cannot run (no GPU, no PyTorch, no compute-sanitizer) says why, and is no
# failure.
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${LCL_GPU_BENCH_DEVICE:-cuda}
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
RESULTS=$(realpath -m "${LCL_GPU_BENCH_RESULTS:-$TARGET/gpu-results}")
SECONDS_IN_ALL=${LCL_GPU_BENCH_SECONDS:-570}
THREADS=$(nproc)
ALL=(formula ranks stall l14 b16 kernels sanitizer)
case $DEVICE in
  cuda | cpu) ;;
  *) echo "LCL_GPU_BENCH_DEVICE is '$DEVICE': cuda or cpu" >&2; exit 2 ;;
esac

programs() { # programs FOLDER
  mkdir -p "$1"
  cargo build --release --quiet -p lcl-torch --example bench_step
  cp "$TARGET/release/examples/bench_step" "$1/"
  local tests name
  # In the tests' own profile, as `make test` builds them.
  tests=$(cargo test -p lcl-torch --test ranks --test gpu --test nccl --no-run --message-format json)
  for name in ranks gpu nccl; do
    cp "$(python3 -c '
import json, sys
built = [json.loads(line) for line in sys.stdin if line.startswith("{")]
print(next(one["executable"] for one in built if one.get("executable") and one["target"]["name"] == sys.argv[1]))' "$name" <<< "$tests")" "$1/$name"
  done
  strip --strip-debug "$1"/*
}

# Why nothing can run on the device; empty when it can.
missing_device() {
  [ "$DEVICE" = cuda ] || return 0
  command -v nvidia-smi > /dev/null || { echo "there is no GPU: nvidia-smi is missing"; return 0; }
  nvidia-smi --query-gpu=name --format=csv,noheader > "$RESULTS/device.txt" 2> /dev/null || echo "there is no GPU: nvidia-smi shows none"
}

has_torch() { "$1" -c 'import sys, torch; sys.exit(not torch.__version__.startswith("2.11."))' > /dev/null 2>&1; }

# A Python with PyTorch, or nothing.
find_python() {
  local python candidates=(python3 .deps/py/bin/python)
  [ -z "${LCL_GPU_BENCH_PYTHON:-}" ] || candidates=("$LCL_GPU_BENCH_PYTHON")
  for python in "${candidates[@]}"; do
    if has_torch "$python"; then
      echo "$python"
      return 0
    fi
  done
}

# ---- The parts. Each prints Markdown. Status 77: it cannot run, for the reason in the last line.

skip() { echo "$*"; exit 77; }
need_torch() { [ -n "$PYTHON" ] || skip "there is no Python with PyTorch 2.11 (LCL_GPU_BENCH_PYTHON names one)"; }
tiny() { [ "$DEVICE" = cpu ]; }

# The formula of the operations in a step against PyTorch's counter.
part_formula() {
  need_torch
  "$PYTHON" bench/flops.py --check
}

# Several ranks: those of the tests, every process a machine of its own to NCCL.
part_ranks() {
  local place=on_one_gpu log=$RESULTS/ranks-one.log programs=(ranks)
  # On the processor `make test` runs them all: one shows that the script does.
  if tiny; then place=on_the_processor_a_state; else programs+=(gpu nccl); fi
  local failed=0 program filter
  for program in "${programs[@]}"; do
    filter=()
    [ "$program" != ranks ] || filter=("$place")
    "$PROGRAMS/$program" "${filter[@]}" --test-threads 1 --nocapture > "$log" 2>&1 || failed=1
    cat "$log" >> "$RESULTS/ranks-all.log"
    grep -E '^test .* (ok|FAILED)$|^test result|panicked at' "$log" | sed 's/^/    /' || true
    ! grep -q '^skipped: there is no GPU' "$log" || { echo "$program has found no GPU"; failed=1; }
    grep -qE '^test result: ok\. [1-9]' "$log" || { echo "$program ran no test"; failed=1; }
  done
  return "$failed"
}

# What a checkpoint costs: goal at most 0.05 s.
part_stall() {
  if tiny; then
    python3 bench/stall.py --binary "$PROGRAMS/bench_step" --model tiny --rows 4 --rounds 1 --steps 4 --threads 1
  else
    python3 bench/stall.py --binary "$PROGRAMS/bench_step" --model l14 --rows 32 --rounds 1 --steps 12 --device cuda --precision bfloat16 \
      --threads "$THREADS"
    printf '\nGoal: beside the step training stands still at most 0.050 s.\n'
  fi
}

# Goals: at most 0.90 of eager and 1.0 of compiled, MFU of L/14 at least 45 %.
steps() { # steps MODEL ROWS...: with the first number of rows that all sides have memory for
  local model=$1 rows
  shift
  if tiny; then
    local ours=()
    [ -n "$PYTHON" ] || ours=(--only-ours)
    "${PYTHON:-python3}" bench/step_compare.py --binary "$PROGRAMS/bench_step" --model tiny --rows 4 --rounds 1 --steps 2 --threads 1 \
      --precisions float32 --peak-tflops 0.1 "${ours[@]}"
    return
  fi
  need_torch
  for rows in "$@"; do
    if "$PYTHON" bench/step_compare.py --binary "$PROGRAMS/bench_step" --model "$model" --rows "$rows" --rounds 1 --steps 20 --device cuda \
      --threads "$THREADS" --precisions bfloat16 --compiled 2> "$RESULTS/$model.log"; then
      printf '\nGoals: at most 0.900 of pytorch, at most 1.000 of pytorch, compiled%s.\n' "$([ "$model" != l14 ] || echo ", MFU at least 45 %")"
      return 0
    fi
    tail -n 3 "$RESULTS/$model.log"
    grep -qi 'out of memory' "$RESULTS/$model.log" || return 1
    echo "with $rows rows a side has no memory left"
  done
  return 1
}

# Where the time goes, ours and PyTorch's.
part_kernels() {
  local sizes=(--model l14 --rows 32 --device cuda --precision bfloat16 --threads "$THREADS") traces=()
  ! tiny || sizes=(--model tiny --rows 4 --threads 1)
  "$PROGRAMS/bench_step" "${sizes[@]}" --warmup 2 --steps 1 --trace "$RESULTS/ours.json" > /dev/null
  traces+=("ours=$RESULTS/ours.json")
  if [ -n "$PYTHON" ]; then
    "$PYTHON" bench/step.py "${sizes[@]}" --warmup 2 --steps 1 --trace "$RESULTS/eager.json" > /dev/null
    traces+=("PyTorch, eager=$RESULTS/eager.json")
    # Compiling for a processor takes longer than all the rest.
    if ! tiny; then
      "$PYTHON" bench/step.py "${sizes[@]}" --warmup 2 --steps 1 --trace "$RESULTS/compiled.json" --compile > /dev/null
      traces+=("PyTorch, compiled=$RESULTS/compiled.json")
    fi
  fi
  python3 bench/kernels.py "${traces[@]}"
}

# No kernel of a step reads or writes where it must not.
part_sanitizer() {
  local step=("$PROGRAMS/bench_step" --model tiny --rows 4 --warmup 0 --steps 1 --device "$DEVICE" --threads 1) log=$RESULTS/sanitizer-all.log
  if tiny; then
    "${step[@]}" > /dev/null
    skip "the step runs; compute-sanitizer is for a GPU"
  fi
  command -v compute-sanitizer > /dev/null || skip "compute-sanitizer is not installed"
  # Each tensor an allocation of its own: within libtorch's large ones an access beyond a tensor would go unseen.
  if PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --error-exitcode 99 "${step[@]}" > "$log" 2>&1; then
    grep -m1 'ERROR SUMMARY' "$log" | sed 's/^=* *//'
    return 0
  fi
  ! grep -q 'Device not supported' "$log" || skip "compute-sanitizer does not support this device here"
  grep -E '^=========' "$log" | head -n 40 | sed 's/^/    /'
  return 1
}

part() { # part PART
  case $1 in
    formula) part_formula ;;
    ranks) part_ranks ;;
    stall) part_stall ;;
    l14) steps l14 128 64 32 ;;
    b16) steps b16 256 128 64 ;;
    kernels) part_kernels ;;
    sanitizer) part_sanitizer ;;
  esac
}

case ${1:-} in
  programs) programs "${2:?programs FOLDER}"; exit 0 ;;
  kinds) printf '%s\n' "${ALL[@]}"; exit 0 ;;
  # By itself, so that it can be ended when it takes too long.
  part) part "$2"; exit ;;
  '') ;;
  *) echo "bench/gpu.sh [programs FOLDER | kinds]: what is run is told by variables, see the script" >&2; exit 2 ;;
esac

# ---- One after the other.

read -ra PARTS <<< "${LCL_GPU_BENCH_PARTS:-${ALL[*]}}"
for part in "${PARTS[@]}"; do
  [[ " ${ALL[*]} " = *" $part "* ]] || { echo "LCL_GPU_BENCH_PARTS: no part is called $part: ${ALL[*]}" >&2; exit 2; }
done

mkdir -p "$RESULTS"
rm -f "$RESULTS"/*.md "$RESULTS"/*.log "$RESULTS"/*.json "$RESULTS/device.txt"
began=$SECONDS
why=$(missing_device)
PYTHON=$(find_python)
PROGRAMS=${LCL_GPU_BENCH_PROGRAMS:-}
if [ -z "$why" ] && [ -z "$PROGRAMS" ]; then
  command -v cargo > /dev/null || { echo "there is no cargo here: name a folder that 'bench/gpu.sh programs' has made in LCL_GPU_BENCH_PROGRAMS" >&2; exit 1; }
  PROGRAMS=$RESULTS/programs
  programs "$PROGRAMS"
fi
if [ "$DEVICE" = cuda ] && [ -n "$PYTHON" ]; then
  # The programs know libtorch_cpu's folder where they were built. Here PyTorch's own holds CUDA's half, too.
  LD_LIBRARY_PATH=$("$PYTHON" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  export LD_LIBRARY_PATH
fi
export PYTHON PROGRAMS LCL_GPU_BENCH_RESULTS="$RESULTS"

limit_of() {
  case $1 in
    ranks) echo 120 ;;
    l14) echo 200 ;;
    b16) echo 120 ;;
    sanitizer) echo 90 ;;
    *) echo 60 ;;
  esac
}

failed=0
{
  echo "Device: $DEVICE$([ ! -e "$RESULTS/device.txt" ] || echo ", $(head -n 1 "$RESULTS/device.txt")")"
  echo
  echo "| part | result | s |"
  echo "|---|---|---|"
} | tee "$RESULTS/summary.md"
line() { echo "| $1 | $2 | $3 |" | tee -a "$RESULTS/summary.md"; }
for part in "${PARTS[@]}"; do
  left=$((SECONDS_IN_ALL - (SECONDS - began)))
  limit=$(limit_of "$part")
  if [ -n "$why" ]; then
    line "$part" "skipped: $why" 0
    continue
  elif [ "$left" -lt 20 ]; then
    line "$part" "not run: the time is up" 0
    failed=1
    continue
  fi
  [ "$limit" -le "$left" ] || limit=$left
  start=$SECONDS status=0
  timeout --kill-after 5 "$limit" bench/gpu.sh part "$part" > "$RESULTS/$part.md" 2>> "$RESULTS/$part.log" || status=$?
  case $status in
    0) result=passed ;;
    77) result="skipped: $(tail -n 1 "$RESULTS/$part.md")" ;;
    124 | 137) result="FAILED: not through after $limit s" failed=1 ;;
    *) result="FAILED: status $status, see $part.md and $part.log" failed=1 ;;
  esac
  line "$part" "$result" $((SECONDS - start))
done
for part in "${PARTS[@]}"; do
  [ ! -s "$RESULTS/$part.md" ] || { printf '\n## %s\n\n' "$part"; cat "$RESULTS/$part.md"; }
done | tee -a "$RESULTS/summary.md"
exit "$failed"
