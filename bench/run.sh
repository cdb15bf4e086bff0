#!/usr/bin/env bash
# All comparisons, one after the other: run.sh [step|checkpoint|image|tokenizer]... Each runs both sides in turns on this machine and
# prints Markdown; docs/benchmarks.md is such a run with its date left out. Needs what `make bench` fetches first (libtorch, a compiler).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=.deps/py/bin/python
TARGET=${CARGO_TARGET_DIR:-target}

# Installed once per list: a changed list is installed anew.
if ! cmp -s bench/requirements.txt .deps/py/.requirements; then
  echo "fetching PyTorch and open_clip to compare with (about 3 GB, once)" >&2
  python3 -m venv .deps/py
  $PYTHON -m pip install --quiet --requirement bench/requirements.txt
  cp bench/requirements.txt .deps/py/.requirements
fi
if ! cmp -s bench/photos.txt .deps/py-images/.requirements; then
  rm -rf .deps/py-images
  $PYTHON -m pip install --quiet --no-deps --target .deps/py-images --requirement bench/photos.txt
  cp bench/photos.txt .deps/py-images/.requirements
fi
scripts/npm-emoji.sh

cargo build --release --quiet -p lcl-torch --example bench_step
cargo build --release --quiet -p lcl-checkpoint --example bench_checkpoint
cargo build --release --quiet -p lcl-data --example bench_image --example bench_tokenizer

part() {
  printf '\n## %s\n\n' "$2"
  case $1 in
    step) $PYTHON bench/step_compare.py --binary "$TARGET/release/examples/bench_step" --threads "$(nproc)" ;;
    checkpoint) $PYTHON bench/checkpoint.py --binary "$TARGET/release/examples/bench_checkpoint" --folder "$TARGET" ;;
    image) $PYTHON bench/image.py --photos .deps/py-images --binary "$TARGET/release/examples/bench_image" ;;
    tokenizer) $PYTHON bench/tokenizer.py --binary "$TARGET/release/examples/bench_tokenizer" ;;
    *) echo "no comparison is called $1: step, checkpoint, image, tokenizer" >&2; exit 2 ;;
  esac
}

[ $# -gt 0 ] || set -- step checkpoint image tokenizer
for name in "$@"; do
  case $name in
    step) part step "Training step" ;;
    checkpoint) part checkpoint "Checkpoint" ;;
    image) part image "Images" ;;
    tokenizer) part tokenizer "Tokenizer" ;;
    *) part "$name" "$name" ;;
  esac
done
