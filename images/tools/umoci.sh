#!/usr/bin/env bash
# umoci, which puts layers into OCI images without an engine, into .deps/umoci-VERSION/umoci: built from the modules pinned in
# images/tools/go.sum (seconds). Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/../.."
VERSION=$(sed -nE 's|^(require)?[[:space:]]*github.com/opencontainers/umoci v([0-9.]+)( .*)?$|\2|p' images/tools/go.mod)
UMOCI=$PWD/.deps/umoci-$VERSION/umoci
if [ ! -x "$UMOCI" ]; then
  command -v go > /dev/null 2>&1 || { echo "Go 1.26 or later is needed to build umoci: install it" >&2; exit 1; }
  mkdir -p "${UMOCI%/*}"
  exec 9> "${UMOCI%/*}/.lock"
  flock 9
  echo "building umoci $VERSION from its modules" >&2
  (cd images/tools && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags '-s -w' -o "$UMOCI.part" github.com/opencontainers/umoci/cmd/umoci)
  mv "$UMOCI.part" "$UMOCI"
fi
echo "$UMOCI"
