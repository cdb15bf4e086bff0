#!/usr/bin/env bash
# A server that speaks Google Cloud Storage, for the tests of data in object stores: builds fake-gcs-server, of the version and digests that
# tests/gcs pins, and prints its path. LCL_GCS_BIN names another one.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/go-tool.sh

if [ -n "${LCL_GCS_BIN:-}" ]; then
  [ -x "$LCL_GCS_BIN" ] || { echo "LCL_GCS_BIN=$LCL_GCS_BIN is no program: point it to fake-gcs-server 1.56, or unset it" >&2; exit 1; }
  echo "$LCL_GCS_BIN"
  exit
fi
go_tool fake-gcs-server tests/gcs github.com/fsouza/fake-gcs-server "" github.com/fsouza/fake-gcs-server
