#!/usr/bin/env bash
# Fetches the two emoji image sets of the demo (136 MB, once) into .deps/emoji/{google,twitter}; versions and SHA-512 are pinned.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=16.0.0
declare -A INTEGRITY=(
  [google]="6517b17f3b3b315a0b9e6cd998db0ee132a19c0269e43fbe566e8fa54a47fe31104257a6a7797cf028d9f83a19d9f68cf51e10c5990e3c90a84fc0e53e17d0dc"
  [twitter]="ec5fae0ae1c7fbb427adcd793f9b676ef2a483d13ab65ce2e0c9d3dae5b5465378a4b613cdae9c3ff76cb487d20ccb698c52d6b997b05a0f2305bb8bd9ec842d"
)
if ! command -v npm > /dev/null 2>&1 && [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null 2>&1; then
  echo "installing npm"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends npm > /dev/null
fi
command -v npm > /dev/null 2>&1 || { echo "npm is needed to fetch the emoji images of the demo: install Node.js" >&2; exit 1; }
for style in google twitter; do
  target=.deps/emoji/$style
  [ -e "$target/.complete-$VERSION" ] && continue
  echo "fetching emoji-datasource-$style $VERSION"
  mkdir -p .deps/emoji
  work=$(mktemp -d ".deps/emoji/$style.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  archive=$(cd "$work" && npm pack --silent "emoji-datasource-$style@$VERSION" 2> npm.log | tail -n 1) || { cat "$work/npm.log" >&2; exit 1; }
  sum=$(sha512sum "$work/$archive" | cut -d' ' -f1)
  [ "$sum" = "${INTEGRITY[$style]}" ] || { echo "emoji-datasource-$style $VERSION has SHA-512 $sum, expected ${INTEGRITY[$style]}" >&2; exit 1; }
  tar -xzf "$work/$archive" -C "$work" "package/emoji.json" "package/LICENSE" "package/img/$style/64"
  touch "$work/package/.complete-$VERSION"
  rm -rf "$target"
  mv "$work/package" "$target"
  rm -rf "$work"
  trap - EXIT
done
