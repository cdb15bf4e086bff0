#!/usr/bin/env bash
# An S3 server for the checkpoint tests: versitygw, built from the modules pinned in trainer/checkpoint/tests/s3/go.sum where the cache
# lacks it. LCL_S3_BIN names a program that is there already. Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/go-tool.sh

if [ -n "${LCL_S3_BIN:-}" ]; then
  [ -x "$LCL_S3_BIN" ] || { echo "LCL_S3_BIN=$LCL_S3_BIN is no program: point it to versitygw 1.8, or unset it" >&2; exit 1; }
  echo "$LCL_S3_BIN"
  exit
fi
go_tool versitygw trainer/checkpoint/tests/s3 github.com/versity/versitygw "" github.com/versity/versitygw/cmd/versitygw
