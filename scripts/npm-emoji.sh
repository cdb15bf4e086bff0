#!/usr/bin/env bash
# Makes .deps/emoji lead to the two emoji image sets of the demo, google and twitter (136 MB, once); versions and SHA-512 are pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
VERSION=16.0.0
declare -A INTEGRITY=(
  [google]="6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc"
  [twitter]="ec5fae0ae1c7fbb427adcd793f9b676ef2a483d13ab65ce2e0c9d3dae5b5465378a4b613cdae9c3ff76cb487d20ccb698c52d6b997b05a0f2305bb8bd9ec842d"
)

fill() { # fill DIR
  local style work archive sum
  command -v npm > /dev/null 2>&1 || scripts/debian.sh npm || { echo "npm is needed to fetch the emoji images of the demo: install Node.js" >&2; exit 1; }
  for style in google twitter; do
    echo "fetching emoji-datasource-$style $VERSION"
    work=$1/.$style
    mkdir "$work"
    archive=$(cd "$work" && npm pack --silent "emoji-datasource-$style@$VERSION" 2> npm.log | tail -n 1) || { cat "$work/npm.log" >&2; exit 1; }
    sum=$(sha512sum "$work/$archive" | cut -d' ' -f1)
    [ "$sum" = "${INTEGRITY[$style]}" ] || { echo "emoji-datasource-$style $VERSION has SHA-512 $sum, expected ${INTEGRITY[$style]}" >&2; exit 1; }
    tar -xzf "$work/$archive" -C "$work" "package/emoji.json" "package/LICENSE" "package/img/$style/64"
    mv "$work/package" "$1/$style"
    rm -r "$work"
  done
}

entry=$(cache_entry emoji-$VERSION - <<< "${INTEGRITY[google]} ${INTEGRITY[twitter]} 64")
cache_fill "$entry" fill
cache_link "$entry" emoji
