#!/usr/bin/env bash
# A server that speaks Azure Blob Storage, for the tests of data in object stores: fetches Azurite with the packages it needs (190 MB, once),
# of the versions and SHA-512 that tests/azurite pins, and prints its path. LCL_AZURITE_BIN names another azurite-blob.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh

if [ -n "${LCL_AZURITE_BIN:-}" ]; then
  [ -x "$LCL_AZURITE_BIN" ] || { echo "LCL_AZURITE_BIN=$LCL_AZURITE_BIN is no program: point it to azurite-blob 3.35, or unset it" >&2; exit 1; }
  echo "$LCL_AZURITE_BIN"
  exit
fi
VERSION=$(sed -nE 's|.*"azurite": "([0-9.]+)".*|\1|p' tests/azurite/package.json)

fill() { # fill DIR
  command -v npm > /dev/null 2>&1 || scripts/debian.sh npm >&2 || { echo "npm is needed to fetch Azurite: install Node.js" >&2; exit 1; }
  echo "fetching Azurite $VERSION (190 MB, once)" >&2
  cp tests/azurite/package.json tests/azurite/package-lock.json "$1/"
  # No program of a package runs while it is fetched.
  npm ci --prefix "$1" --ignore-scripts --omit=dev --no-audit --no-fund > "$1/npm.log" 2>&1 || { cat "$1/npm.log" >&2; exit 1; }
}

entry=$(cache_entry "azurite-$VERSION" tests/azurite/package.json tests/azurite/package-lock.json)
cache_fill "$entry" fill
cache_link "$entry" "azurite-$VERSION"
echo "$PWD/.deps/azurite-$VERSION/node_modules/.bin/azurite-blob"
