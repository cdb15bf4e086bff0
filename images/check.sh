#!/usr/bin/env bash
# Builds images from two clones of HEAD in two folders, with nothing shared but the sources of crates, and compares their digests:
# check.sh [--here] [NAME...], by default all. Expensive: everything is compiled twice. A libtorch that is here is linked into both clones.
# With --here this clone is one of the two: what `make images` has built in it from the same HEAD is compared with a clone elsewhere.
set -euo pipefail
cd "$(dirname "$0")/.."
REPOSITORY=$PWD
HERE=
if [ "${1:-}" = --here ]; then
  HERE=$(realpath -m "${CARGO_TARGET_DIR:-target}")/images
  shift
  [ -z "$(git status --porcelain)" ] || { echo "the images here may be those of changes that are not committed" >&2; exit 1; }
fi
[ $# -gt 0 ] || set -- lcl-operator lcl-coordinator lcl-trainer pause
WORK=$(mktemp -d "${TMPDIR:-/tmp}/lcl-images-check.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
FOLDERS=("$WORK/another/place/of-another-length")
[ -n "$HERE" ] || FOLDERS+=("$WORK/one")
unset CARGO_TARGET_DIR
HAS=$(realpath "${LIBTORCH:-.deps/libtorch-2.11.0}")
unset LIBTORCH
for folder in "${FOLDERS[@]}"; do
  git clone --quiet --no-hardlinks "$REPOSITORY" "$folder"
  mkdir -p "$folder/.deps"
  # Another path to libtorch in each clone; the files are the same, and copying a gigabyte shows nothing.
  cp -a --link "$HAS" "$folder/.deps/libtorch-2.11.0" 2> /dev/null || cp -a "$HAS" "$folder/.deps/libtorch-2.11.0"
  programs=()
  for name in "$@"; do
    [ "$name" = pause ] || programs+=("$name")
  done
  echo "building in $folder"
  (
    cd "$folder"
    [ ${#programs[@]} -eq 0 ] || images/programs.sh "${programs[@]}"
    mkdir -p target/images/programs
    images/assemble.sh target/images/programs target/images "$@"
    # Room for the second: what was compiled is not looked at again.
    rm -rf target/images/build-*
  )
done
python3 - "${FOLDERS[0]}/target/images" "${HERE:-${FOLDERS[-1]}/target/images}" <<'PY'
import json, pathlib, subprocess, sys
first, second = map(pathlib.Path, sys.argv[1:])
digests = [{image["archive"]: image["digest"] for image in json.loads((folder / "images.json").read_bytes())["images"]} for folder in (first, second)]
different = [name for name in digests[0] if digests[0][name] != digests[1].get(name)]
for name in different:
    print(f"{name} differs: {digests[0][name]} and {digests[1].get(name)}", file=sys.stderr)
    subprocess.run(["cmp", first / "programs" / name.removesuffix(".tar"), second / "programs" / name.removesuffix(".tar")])
if different or not digests[0]:
    sys.exit(1)
for name, digest in digests[0].items():
    print(f"the same from both clones: {name} {digest}")
PY
