#!/usr/bin/env bash
# All benchmarks, one after the other: run.sh [step|elastic|recovery|group|checkpoint|image|tokenizer|jobs|idle|coordinator]... Where there is another side both run in turns on this machine. Each
# prints Markdown; docs/benchmarks.md is such a run with its date left out. Needs what `make bench` fetches first
# (libtorch, a compiler, and for jobs and idle a Kubernetes and Helm).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.deps/py/bin/python
TARGET=${CARGO_TARGET_DIR:-target}
source scripts/cache.sh
PHOTOS=$(cache_entry photos-1 bench/photos.txt)

photos() { # photos DIR
  $PYTHON -m pip install --quiet --no-deps --target "$1" --requirement bench/photos.txt
}

# What the comparisons with Python programs need.
prepare_python() {
  # PyTorch and open_clip to compare with are about 3 GB, once.
  scripts/python.sh py bench/requirements.txt > /dev/null
  cache_fill "$PHOTOS" photos
  cache_link "$PHOTOS" photos
  scripts/npm-emoji.sh

  cargo build --release --quiet -p lcl-torch --example bench_step --example bench_members
  cargo build --release --quiet -p lcl-trainer -p lcl-coordinator
  cargo build --release --quiet -p lcl-checkpoint --example bench_checkpoint
  cargo build --release --quiet -p lcl-data --example bench_image --example bench_tokenizer
}

# What measurements of the operator need.
prepare_operator() { # prepare_operator BENCH
  cargo build --release --quiet -p lcl-cluster
  cargo bench --quiet -p lcl-operator --bench "$1" --no-run
}

part() {
  printf '\n## %s\n\n' "$2"
  case $1 in
    step) $PYTHON bench/step_compare.py --binary "$TARGET/release/examples/bench_step" --threads "$(nproc)" ;;
    elastic) $PYTHON bench/elastic_compare.py --binary "$TARGET/release/examples/bench_members" ;;
    recovery) $PYTHON bench/recovery.py --trainer "$TARGET/release/lcl-trainer" ;;
    group) $PYTHON bench/group.py --trainer "$TARGET/release/lcl-trainer" ;;
    checkpoint)
      $PYTHON bench/checkpoint.py --binary "$TARGET/release/examples/bench_checkpoint" --folder "$TARGET"
      echo
      $PYTHON bench/stall.py --binary "$TARGET/release/examples/bench_step" --threads "$(nproc)"
      ;;
    image) $PYTHON bench/image.py --photos .deps/photos --binary "$TARGET/release/examples/bench_image" ;;
    tokenizer) $PYTHON bench/tokenizer.py --binary "$TARGET/release/examples/bench_tokenizer" ;;
    jobs | idle) cargo bench --quiet -p lcl-operator --bench "$1" ;;
    coordinator) cargo bench --quiet -p lcl-coordinator --bench load ;;
  esac
}

[ $# -gt 0 ] || set -- step elastic recovery group checkpoint image tokenizer jobs idle coordinator
for name in "$@"; do
  case $name in
    step | elastic | recovery | group | checkpoint | image | tokenizer) needs_python=1 ;;
    jobs | idle) prepare_operator "$name" ;;
    coordinator) cargo bench --quiet -p lcl-coordinator --bench load --no-run ;;
    *) echo "no comparison is called $name: step, elastic, recovery, group, checkpoint, image, tokenizer, jobs, idle, coordinator" >&2; exit 2 ;;
  esac
done
[ -z "${needs_python:-}" ] || prepare_python
for name in "$@"; do
  case $name in
    step) part step "Training step" ;;
    elastic) part elastic "Steps of several members" ;;
    recovery) part recovery "Recovery" ;;
    group) part group "Large groups" ;;
    checkpoint) part checkpoint "Checkpoint" ;;
    image) part image "Images" ;;
    tokenizer) part tokenizer "Tokenizer" ;;
    jobs) part jobs "Jobs" ;;
    idle) part idle "Jobs at rest" ;;
    coordinator) part coordinator "Coordinator" ;;
  esac
done
