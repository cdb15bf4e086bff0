#!/usr/bin/env bash
# Builds the programs of the images, the same bytes in whatever folder: programs.sh [PROGRAM...]; by default all. They land in
# target/images/programs, each with the licences of the crates in it. The trainer links libtorch and is dynamic; the others are static
# and need nothing of an image but themselves.
set -euo pipefail
cd "$(dirname "$0")/.."
ROOT=$(pwd -P)
TRIPLE=x86_64-unknown-linux-gnu
OUT=$(realpath -m "${CARGO_TARGET_DIR:-target}")/images
CARGO=$(realpath -m "${CARGO_HOME:-$HOME/.cargo}")
LIBTORCH=$(realpath -m "${LIBTORCH:-.deps/libtorch-2.11.0}")
export LIBTORCH
[ $# -gt 0 ] || set -- lcl-operator lcl-coordinator lcl-trainer

for path in "$ROOT" "$OUT" "$CARGO" "$LIBTORCH"; do
  # Flags for C compilers travel in variables that are split at blanks.
  [ "$path" = "${path//[[:space:]]/}" ] || { echo "images cannot be built in '$path': its name has a blank" >&2; exit 1; }
done

# The sources' folder is named after the registry they came from; it has to be there to be mapped.
cargo fetch --quiet --locked --target $TRIPLE
# Folder on this machine = name in the program. The last one that fits wins, for rustc and for GCC.
maps=("$ROOT=/lcl" "$OUT=/target" "$LIBTORCH=/libtorch" "$CARGO=/cargo")
for sources in "$CARGO"/registry/src/*/; do
  maps+=("${sources%/}=/crates")
done
for sources in "$CARGO"/git/checkouts/; do
  maps+=("${sources%/}=/checkouts")
done
rust=() c=(-frandom-seed=lcl)
for map in "${maps[@]}"; do
  rust+=("--remap-path-prefix=$map")
  c+=("-ffile-prefix-map=$map")
done
# rustc's own linker arguments carry no path that is kept; a build id would be the digest of what is kept anyway.
rust+=(-C link-arg=-Wl,--build-id=none)
export CFLAGS="${c[*]}" CXXFLAGS="${c[*]}" SOURCE_DATE_EPOCH=0 CARGO_INCREMENTAL=0 ZERO_AR_DATE=1 LC_ALL=C
export LCL_RELOCATABLE=1

build() { # build PROGRAM FOLDER [RUSTFLAG...]: a folder for each set of flags, else each would throw the other's work away
  local program=$1 folder=$OUT/$2
  shift 2
  local flags=("${rust[@]}" "$@")
  # The separator is one that no flag has.
  CARGO_ENCODED_RUSTFLAGS=$(printf '%s\x1f' "${flags[@]}" | sed 's/\x1f$//') \
    cargo build --quiet --locked --profile image --target $TRIPLE --target-dir "$folder" --package "$program" --bin "$program"
  install -D -m 755 "$folder/$TRIPLE/image/$program" "$OUT/programs/$program"
  # The assembler of libjpeg-turbo's inner loops notes its sources' full names and cannot be told another.
  objcopy --wildcard --strip-symbol '/*' "$OUT/programs/$program"
  python3 images/licenses.py "$program" > "$OUT/programs/$program.licenses"
  local path
  for path in "$ROOT" "$OUT" "$CARGO" "$LIBTORCH"; do
    if grep --quiet --fixed-strings --binary-files=text "$path/" "$OUT/programs/$program"; then
      echo "$program names $path, a folder of this machine: the image would not be reproducible" >&2
      exit 1
    fi
  done
}

# One by one: together, the features that one asks for would be built into the others, and an image would depend on its neighbours.
for program in "$@"; do
  if ! cargo pkgid --quiet --locked --package "$program" > /dev/null 2>&1; then
    echo "$program is no member of this workspace: left out" >&2
    rm -f "$OUT/programs/$program" "$OUT/programs/$program.licenses"
    continue
  fi
  case $program in
    lcl-trainer) build "$program" build-dynamic ;;
    *) build "$program" build-static -C target-feature=+crt-static ;;
  esac
done
