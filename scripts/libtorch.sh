#!/usr/bin/env bash
# Makes .deps/libtorch-VERSION lead to the pinned libtorch, fetched where the cache lacks it. Does nothing when LIBTORCH is set.
# The wheels of PyTorch hold the same libraries as the C++ distribution; versions and SHA-256 are in scripts/libtorch.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
VERSION=2.11.0

if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || { echo "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so: point it at an unpacked libtorch $VERSION, or unset it" >&2; exit 1; }
  exit 0
fi

fill() { # fill DIR
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "the pinned libtorch is for Linux on x86-64; on $(uname -sm) set LIBTORCH to an unpacked libtorch $VERSION" >&2; exit 1
  fi
  python3 -m pip --version > /dev/null 2>&1 || { echo "python3 with pip is needed to fetch libtorch: install them, or set LIBTORCH to an unpacked libtorch $VERSION" >&2; exit 1; }
  echo "fetching libtorch $VERSION (about 545 MB, once)"
  fetch_wheels "$1/.wheels" scripts/libtorch.txt --implementation cp --python-version 3.11 --abi cp311 --abi none
  python3 scripts/unpack_wheels.py libtorch "$1/.wheels" "$1"
  rm -r "$1/.wheels"
}

entry=$(cache_entry libtorch-$VERSION scripts/libtorch.txt scripts/unpack_wheels.py)
cache_fill "$entry" fill
cache_link "$entry" libtorch-$VERSION
