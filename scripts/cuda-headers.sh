#!/usr/bin/env bash
# Unpacks the headers of CUDA and NCCL into .deps/cuda-headers-VERSION: cuda-headers.sh [DIR]. Does nothing when they are there.
# They are those that libtorch 2.11.0 was built with; nothing of them is linked, and no GPU is needed. Versions and SHA-256 are in
# scripts/cuda-headers.txt. With CUDA_HOME and NCCL_HOME set to CUDA 13.0 and NCCL 2.28.9 the build does without.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=13.0-nccl-2.28.9
DIR=${1:-.deps/cuda-headers-$VERSION}

[ -e "$DIR/.complete" ] && cmp -s scripts/cuda-headers.txt "$DIR/.complete" && exit 0
if [ -e "${CUDA_HOME:-/nowhere}/include/cuda_runtime_api.h" ] && [ -e "${NCCL_HOME:-/nowhere}/include/nccl.h" ]; then
  exit 0
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "the pinned headers are for Linux on x86-64; on $(uname -sm) set CUDA_HOME to CUDA 13.0 and NCCL_HOME to NCCL 2.28.9" >&2; exit 1
fi
python3 -m pip --version > /dev/null 2>&1 || { echo "python3 with pip is needed to fetch headers: install them, or set CUDA_HOME and NCCL_HOME" >&2; exit 1; }
echo "fetching headers of CUDA and NCCL (about 202 MB, once)"
mkdir -p .deps
WORK=$(mktemp -d .deps/cuda-headers.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --implementation py --abi none \
  --platform manylinux_2_18_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
  --dest "$WORK" --requirement scripts/cuda-headers.txt
python3 - "$WORK" <<'PY'
import pathlib, re, sys, zipfile
work = pathlib.Path(sys.argv[1])
header = re.compile(r"nvidia/(?:cu13|nccl)/(include/(?!cccl/).*)")
licence = re.compile(r"([^/]*)-[^/]*\.dist-info/.*(LICENSE|License|NOTICE)[^/]*$")
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith("/"):
                continue
            if found := header.match(member):
                name = found[1]
            elif found := licence.match(member):
                name = f"licenses/{found[1]}/{member.rsplit('/', 1)[1]}"
            else:
                continue
            target = work / "headers" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(member))
PY
for part in include/cuda_runtime_api.h include/crt/host_defines.h include/nv/target include/nccl.h; do
  [ -e "$WORK/headers/$part" ] || { echo "the wheels lack $part" >&2; exit 1; }
done
cp scripts/cuda-headers.txt "$WORK/headers/.complete"
rm -rf "$DIR"
mv "$WORK/headers" "$DIR"
