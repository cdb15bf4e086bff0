#!/usr/bin/env bash
# Helm for the charts' tests, into .deps/helm-VERSION/helm: built from the modules pinned in tests/cluster/helm/go.sum (about two
# minutes on two cores, once). LCL_HELM_BIN names a program that is there already. Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/.."
MODULE=tests/cluster/helm

if [ -n "${LCL_HELM_BIN:-}" ]; then
  [ -x "$LCL_HELM_BIN" ] || { echo "LCL_HELM_BIN=$LCL_HELM_BIN is no program: point it to Helm 4, or unset it" >&2; exit 1; }
  echo "$LCL_HELM_BIN"
  exit
fi

VERSION=$(sed -nE 's|^(require)?[[:space:]]*helm.sh/helm/v4 v([0-9.]+)( .*)?$|\2|p' $MODULE/go.mod)
HELM=$PWD/.deps/helm-$VERSION/helm
if [ ! -x "$HELM" ]; then
  mkdir -p "${HELM%/*}"
  # One at a time: two targets started together would build the same file.
  exec 9> "${HELM%/*}/.lock"
  flock 9
fi
if [ ! -x "$HELM" ]; then
  command -v go > /dev/null 2>&1 || { echo "Go 1.26 or later is needed to build Helm: install it, or set LCL_HELM_BIN" >&2; exit 1; }
  echo "building Helm $VERSION from its modules: about two minutes on two cores, once" >&2
  version=helm.sh/helm/v4/internal/version
  (cd $MODULE && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "-s -w -X $version.version=v$VERSION" -o "$HELM.part" helm.sh/helm/v4/cmd/helm)
  mv "$HELM.part" "$HELM"
fi
echo "$HELM"
