#!/usr/bin/env bash
# Runs every test and ends with a summary: test.sh [FILTER...]. Expects what `make test` installs. A filter is one of cargo-nextest's
# (`-E 'package(lcl-data)'`, or a part of a name); with one, nothing but integration tests is run.
#
# Unit tests run as cargo runs them, those of a crate in one process: they take milliseconds, and loading libtorch a quarter of a second.
# Integration tests, which mostly wait for processes, run side by side, each in a process of its own (.config/nextest.toml).
set -euo pipefail
cd "$(dirname "$0")/.."
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
NEXTEST=$(scripts/nextest.sh)
RESULTS=$TARGET/test-results
# What random tests are drawn from; the summary tells it, and a failure comes back with it.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
rm -rf "$RESULTS"
mkdir -p "$RESULTS"

began=$SECONDS
cargo test --workspace --no-run --quiet
built=$SECONDS
images/test/images.sh
assembled=$SECONDS

unit() { # unit LOG OPTION...: keeps what cargo says, for the summary
  local log=$1
  shift
  cargo test --workspace --no-fail-fast "$@" > "$RESULTS/$log" 2>&1 || { failed=1; echo "cargo test $* ended with $?" >> "$RESULTS/$log"; }
}

failed=0
if [ $# -eq 0 ]; then
  unit unit.log --lib --bins
  unit doc.log --doc
fi
tested=$SECONDS
REPORT=target/nextest/default/junit.xml
rm -f $REPORT
"$NEXTEST" nextest run --workspace --cargo-quiet "$@" || failed=1
[ -e $REPORT ] || { echo "no integration test was run: none that is built fits '$*', or the build failed above" >&2; exit 1; }
mv $REPORT "$RESULTS/junit.xml"
# Why those that are left out unless asked for are left out, as their programs say it.
"$NEXTEST" nextest list --workspace --cargo-quiet --run-ignored only --message-format json "$@" > "$RESULTS/ignored.json"
ended=$SECONDS
echo "seconds: $((built - began)) building, $((assembled - built)) images for tests, $((tested - assembled)) unit tests and examples in documentation, $((ended - tested)) integration tests"
python3 scripts/test_summary.py "$RESULTS" "$PROPTEST_RNG_SEED" || failed=1
exit "$failed"
