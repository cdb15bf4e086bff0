#!/usr/bin/env bash
# cargo-deny, which checks licences and advisories. Prints the program's path; version and SHA-256 are in scripts/cargo-deny.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/cargo-tool.sh
cargo_tool cargo-deny scripts/cargo-deny.txt
