#!/usr/bin/env bash
# Fills the folders that examples/emoji.yaml mounts from its node: /var/lib/lcl/data with the packed emoji, and /var/lib/lcl/runs, which
# the trainer's user may write. The nodes of `make cluster` share this machine's files.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=/var/lib/lcl
TRAINER=65532 # as in images/roots.sh
"${CARGO_TARGET_DIR:-target}/debug/examples/pack_emoji" --google .deps/emoji/google --twitter .deps/emoji/twitter --out $ROOT/data/emoji
install -d -o $TRAINER -g $TRAINER $ROOT/runs
echo "data:        $ROOT/data/emoji"
echo "checkpoints: $ROOT/runs"
