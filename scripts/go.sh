#!/usr/bin/env bash
# Go for the tools that are built from modules: go.sh prints the program's path, go.sh version its version (and installs nothing).
# It is the `go` of the PATH when that is 1.26 or later; else the one pinned in scripts/go, which the cache gets from the module
# golang.org/toolchain, checked by scripts/go/go.sum. Fetching modules takes some Go, of whatever age: Debian's.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
VERSION=$(sed -nE 's|^require golang.org/toolchain v0.0.1-(go[0-9.]+).linux-amd64$|\1|p' scripts/go/go.mod)
# What the tools' go.mod ask for.
MINIMUM=1.26
export GOTOOLCHAIN=local

if own=$(go version 2> /dev/null | cut -d' ' -f3) && printf 'go%s\n%s\n' $MINIMUM "$own" | sort --check=quiet --version-sort; then
  case ${1:-} in
    version) echo "$own" ;;
    *) command -v go ;;
  esac
  exit
fi
[ "${1:-}" != version ] || { echo "$VERSION"; exit; }

fill() { # fill DIR
  local modules=$1/.modules
  [ "$(uname -sm)" = "Linux x86_64" ] || { echo "the pinned Go is for Linux on x86-64; on $(uname -sm) install Go $MINIMUM or later" >&2; exit 1; }
  command -v go > /dev/null 2>&1 || scripts/debian.sh golang-go >&2 || { echo "Go $MINIMUM or later is needed to build tools of the tests: install it" >&2; exit 1; }
  echo "fetching $VERSION (70 MB, once)" >&2
  (cd scripts/go && GOFLAGS=-modcacherw GOMODCACHE=$modules go mod download golang.org/toolchain) >&2
  mv "$modules"/golang.org/toolchain@*/* "$1/"
  rm -r "$modules"
  # Modules keep no file modes.
  chmod +x "$1"/bin/* "$1"/pkg/tool/*/*
  [ "$("$1/bin/go" version | cut -d' ' -f3)" = "$VERSION" ] || { echo "the fetched Go does not say that it is $VERSION" >&2; exit 1; }
}

entry=$(cache_entry "$VERSION" scripts/go/go.sum)
cache_fill "$entry" fill
cache_link "$entry" go
echo "$PWD/.deps/go/bin/go"
