#!/usr/bin/env bash
# cargo-nextest, which runs the tests. Prints the program's path; version and SHA-256 are in scripts/nextest.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/cargo-tool.sh
cargo_tool cargo-nextest scripts/nextest.txt
