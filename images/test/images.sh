#!/usr/bin/env bash
# Images for the tests on nodes, from the programs that are built for the other tests: images.sh [NAME...], by default all, into
# target/test-images. They are put together as those of `make images` are (images/roots.sh, images/assemble.sh); what differs is inside:
# the programs are of the test profile and dynamic, and layers are not compressed. An image whose program is unchanged stays.
set -euo pipefail
cd "$(dirname "$0")/../.."
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
OUT=$TARGET/test-images
PROGRAMS=$OUT/programs
[ $# -gt 0 ] || set -- pause lcl-operator lcl-coordinator lcl-trainer
mkdir -p "$PROGRAMS"
# One at a time in one target folder.
exec 9> "$OUT/.lock"
flock 9

# Everything besides the program that an archive is made of.
recipe=$(cat images/*.sh images/*.py images/test/images.sh images/test/pause.c images/tools/go.sum scripts/libtorch.txt | sha256sum)
stale=()
for name in "$@"; do
  made_from=$recipe
  if [ "$name" != pause ]; then
    built=$TARGET/debug/$name
    [ -x "$built" ] || { echo "$built is missing: 'cargo build -p $name' makes it" >&2; exit 1; }
    # Lines of code are for backtraces, and twice the size of the program.
    objcopy --strip-debug "$built" "$PROGRAMS/$name"
    echo "A program built for tests. The images of 'make images' carry the licences of its crates." > "$PROGRAMS/$name.licenses"
    made_from+=$(sha256sum < "$PROGRAMS/$name")
  fi
  if [ ! -e "$OUT/$name.tar" ] || [ "$(cat "$OUT/$name.from" 2> /dev/null)" != "$made_from" ]; then
    rm -f "$OUT/$name.from"
    stale+=("$name")
    echo "$made_from" > "$PROGRAMS/$name.from"
  fi
done
[ ${#stale[@]} -gt 0 ] || exit 0
LCL_IMAGE_COMPRESSION=none images/assemble.sh "$PROGRAMS" "$OUT" "${stale[@]}"
# Said last: an assembly that was cut off is begun again.
for name in "${stale[@]}"; do
  mv "$PROGRAMS/$name.from" "$OUT/$name.from"
done
