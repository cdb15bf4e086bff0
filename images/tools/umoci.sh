#!/usr/bin/env bash
# umoci, which puts layers into OCI images without an engine: built from the modules pinned in images/tools/go.sum where the cache lacks
# it (seconds). Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/../.."
source scripts/cache.sh
source scripts/go-tool.sh
go_tool umoci images/tools github.com/opencontainers/umoci "" github.com/opencontainers/umoci/cmd/umoci
