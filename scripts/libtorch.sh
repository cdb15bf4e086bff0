#!/usr/bin/env bash
# Unpacks the pinned libtorch into .deps/libtorch-VERSION: libtorch.sh [DIR]. Does nothing when it is there or when LIBTORCH is set.
# The wheels of PyTorch hold the same libraries as the C++ distribution; versions and SHA-256 are in scripts/libtorch.txt.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=2.11.0
DIR=${1:-.deps/libtorch-$VERSION}

if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || { echo "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so: point it at an unpacked libtorch $VERSION, or unset it" >&2; exit 1; }
  exit 0
fi
present() { # present PATH: this very version is unpacked and has it
  [ -e "$DIR/.complete" ] && cmp -s scripts/libtorch.txt "$DIR/.complete" && [ -e "$DIR/$1" ]
}
present licenses/torch/LICENSE && exit 0

if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "the pinned libtorch is for Linux on x86-64; on $(uname -sm) set LIBTORCH to an unpacked libtorch $VERSION" >&2; exit 1
fi
python3 -m pip --version > /dev/null 2>&1 || { echo "python3 with pip is needed to fetch libtorch: install them, or set LIBTORCH to an unpacked libtorch $VERSION" >&2; exit 1; }
echo "fetching libtorch $VERSION (about 545 MB, once)"
mkdir -p .deps
WORK=$(mktemp -d .deps/libtorch.XXXXXX)
trap 'rm -rf "$WORK"' EXIT
python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: --implementation cp --python-version 3.11 --abi cp311 --abi none \
  --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
  --dest "$WORK" --requirement scripts/libtorch.txt
python3 - "$WORK" <<'PY'
import pathlib, re, sys, zipfile
work = pathlib.Path(sys.argv[1])
wanted = re.compile(r"torch/(lib/lib[^/]*|include/.*|version\.py)$|nvidia/cu13/lib/(libcudart|libcupti)\.so[^/]*$|[^/]*\.dist-info/.*(LICENSE|License|NOTICE)[^/]*$")
# Python bindings and CUDA device code are not linked by a program without Python; nvshmem needs libraries of its own.
unwanted = re.compile(r"libtorch_python|libtorch_nvshmem|libshm_windows")
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.namelist():
            if member.endswith("/"):
                continue
            if wanted.search(member) and not unwanted.search(member):
                if member.startswith("nvidia/"):
                    name = "lib/" + member.rsplit("/", 1)[1]
                elif member.startswith("torch/"):
                    name = member.removeprefix("torch/")
                else:
                    # What is handed on (images hold these libraries) carries its licences along.
                    name = "licenses/" + member.split("-", 1)[0] + "/" + member.rsplit("/", 1)[1]
                target = work / "libtorch" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:
                    while block := source.read(1 << 22):
                        sink.write(block)
PY
for part in lib/libtorch_cpu.so lib/libc10.so lib/libcudart.so.13 lib/libcupti.so.13 include/torch/csrc/autograd/custom_function.h licenses/torch/LICENSE; do
  [ -e "$WORK/libtorch/$part" ] || { echo "the wheels lack $part" >&2; exit 1; }
done
if present lib; then
  # Unpacked before licences were kept: the libraries may be in use and stay as they are.
  rm -rf "$DIR/licenses"
  mv "$WORK/libtorch/licenses" "$DIR/licenses"
  exit 0
fi
cp scripts/libtorch.txt "$WORK/libtorch/.complete"
rm -rf "$DIR"
mv "$WORK/libtorch" "$DIR"
