#!/usr/bin/env bash
# Fills the folders that examples/emoji.yaml mounts from its node: /var/lib/lcl/data with the packed emoji, and /var/lib/lcl/runs, which
# the trainer's user may write. The nodes of `make cluster` share this machine's files.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=/var/lib/lcl
TRAINER=65532 # as in images/roots.sh
"${CARGO_TARGET_DIR:-target}/debug/examples/pack_emoji" --google .deps/emoji/google --twitter .deps/emoji/twitter --out $ROOT/data/emoji
# The run of a cluster that is gone would make the job of this one complete at once, or go on where that one stopped.
if [ -e $ROOT/runs/emoji ]; then
  kept=$ROOT/runs/emoji.$(date -u +%Y%m%dT%H%M%SZ)
  mv $ROOT/runs/emoji "$kept"
  echo "an earlier run is kept in $kept"
fi
install -d -o $TRAINER -g $TRAINER $ROOT/runs
echo "data:        $ROOT/data/emoji"
echo "checkpoints: $ROOT/runs"
