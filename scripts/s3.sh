#!/usr/bin/env bash
# An S3 server for the checkpoint tests, into .deps/versitygw-VERSION/versitygw: built from the modules pinned in
# trainer/checkpoint/tests/s3/go.sum. LCL_S3_BIN names a program that is there already. Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/.."
MODULE=trainer/checkpoint/tests/s3

if [ -n "${LCL_S3_BIN:-}" ]; then
  [ -x "$LCL_S3_BIN" ] || { echo "LCL_S3_BIN=$LCL_S3_BIN is no program: point it to versitygw 1.8, or unset it" >&2; exit 1; }
  echo "$LCL_S3_BIN"
  exit
fi

VERSION=$(sed -nE 's|^(require)?[[:space:]]*github.com/versity/versitygw v([0-9.]+)( .*)?$|\2|p' $MODULE/go.mod)
SERVER=$PWD/.deps/versitygw-$VERSION/versitygw
if [ ! -x "$SERVER" ]; then
  mkdir -p "${SERVER%/*}"
  # One at a time: two tests started together would build the same file.
  exec 9> "${SERVER%/*}/.lock"
  flock 9
fi
if [ ! -x "$SERVER" ]; then
  command -v go > /dev/null 2>&1 || { echo "Go 1.26 or later is needed to build versitygw: install it, or set LCL_S3_BIN" >&2; exit 1; }
  echo "building versitygw $VERSION from its modules, once" >&2
  (cd $MODULE && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w" -o "$SERVER.part" github.com/versity/versitygw/cmd/versitygw)
  mv "$SERVER.part" "$SERVER"
fi
echo "$SERVER"
