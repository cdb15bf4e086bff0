#!/usr/bin/env bash
# Programs of an earlier commit against today's: compat.sh COMMIT. Builds its coordinator and trainer in target/compat, and has them meet
# today's members, coordinator and operator. What can meet without a build, the messages themselves, is in proto/tests/recorded.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 1 ] && [ -n "$1" ] || { echo "say which commit: make compat COMMIT=…" >&2; exit 2; }
COMMIT=$(git rev-parse --verify "$1^{commit}")
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
PLACE=$TARGET/compat/$COMMIT
if [ ! -x "$PLACE/target/debug/lcl-trainer" ] || [ ! -x "$PLACE/target/debug/lcl-coordinator" ]; then
  rm -rf "$PLACE"
  git clone --quiet . "$PLACE"
  git -C "$PLACE" checkout --quiet "$COMMIT"
  # The same libtorch; one that names another fetches its own.
  ln -sfn "$PWD/.deps" "$PLACE/.deps"
  (cd "$PLACE" && CARGO_TARGET_DIR=$PLACE/target cargo build --quiet --workspace --bin lcl-coordinator --bin lcl-trainer)
fi
export LCL_EARLIER=$PLACE/target/debug
cargo test --quiet --workspace --test compat -- --ignored --nocapture
# The operator shows an earlier coordinator its certificate, follows it, and is refused for another epoch.
LCL_COORDINATOR_BIN=$LCL_EARLIER/lcl-coordinator cargo test --quiet --workspace --test control_plane -- \
  --exact coordinator::what_a_coordinator_refuses_keeps_no_pod_from_being_created | tee "$PLACE/control_plane.log"
grep -q '1 passed' "$PLACE/control_plane.log" || { echo "the test of the operator with a coordinator was not run: it has another name" >&2; exit 1; }
echo "today's operator follows the coordinator of $(git log -1 --format='%h, %cs' "$COMMIT")"
