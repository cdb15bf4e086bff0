#!/usr/bin/env bash
# Runs every test and ends with a summary: test.sh [FILTER...]. Expects what `make test` installs. A filter is one of cargo-nextest's
# (`-E 'package(lcl-data)'`, or a part of a name); with one, nothing but cargo's tests is run.
set -euo pipefail
cd "$(dirname "$0")/.."
TARGET=${CARGO_TARGET_DIR:-target}
NEXTEST=$(scripts/nextest.sh)
RESULTS=$TARGET/test-results
# What random tests are drawn from; the summary tells it, and a failure comes back with it.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
rm -rf "$RESULTS"
mkdir -p "$RESULTS"

clock() { date +%s; }
began=$(clock)
"$NEXTEST" nextest run --workspace --no-run --cargo-quiet
built=$(clock)
images/test/images.sh
assembled=$(clock)
echo "built in $((built - began)) s, images for tests in $((assembled - built)) s"

failed=0
"$NEXTEST" nextest run --workspace --cargo-quiet "$@" || failed=$?
mv target/nextest/default/junit.xml "$RESULTS/junit.xml"
if [ $# -eq 0 ]; then
  cargo test --workspace --doc --quiet > "$RESULTS/doc.log" 2>&1 || failed=$?
fi
# Why those that are left out unless asked for are left out, as their programs say it.
"$NEXTEST" nextest list --workspace --cargo-quiet --run-ignored only --message-format json > "$RESULTS/ignored.json" "$@"
python3 scripts/test_summary.py "$RESULTS" "$PROPTEST_RNG_SEED" || failed=$?
exit "$failed"
