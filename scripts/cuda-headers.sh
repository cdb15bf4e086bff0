#!/usr/bin/env bash
# Makes .deps/cuda-headers-VERSION lead to the headers of CUDA and NCCL, fetched where the cache lacks them. They are those that libtorch
# 2.11.0 was built with; nothing of them is linked, and no GPU is needed. Versions and SHA-256 are in scripts/cuda-headers.txt.
# With CUDA_HOME and NCCL_HOME set to CUDA 13.0 and NCCL 2.28.9 the build does without.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
VERSION=13.0-nccl-2.28.9

if [ -e "${CUDA_HOME:-/nowhere}/include/cuda_runtime_api.h" ] && [ -e "${NCCL_HOME:-/nowhere}/include/nccl.h" ]; then
  exit 0
fi

fill() { # fill DIR
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "the pinned headers are for Linux on x86-64; on $(uname -sm) set CUDA_HOME to CUDA 13.0 and NCCL_HOME to NCCL 2.28.9" >&2; exit 1
  fi
  python3 -m pip --version > /dev/null 2>&1 || { echo "python3 with pip is needed to fetch headers: install them, or set CUDA_HOME and NCCL_HOME" >&2; exit 1; }
  echo "fetching headers of CUDA and NCCL (about 202 MB, once)"
  fetch_wheels "$1/.wheels" scripts/cuda-headers.txt --implementation py --abi none
  python3 scripts/unpack_wheels.py cuda-headers "$1/.wheels" "$1"
  rm -r "$1/.wheels"
}

entry=$(cache_entry cuda-headers-$VERSION scripts/cuda-headers.txt scripts/unpack_wheels.py)
cache_fill "$entry" fill
cache_link "$entry" cuda-headers-$VERSION
