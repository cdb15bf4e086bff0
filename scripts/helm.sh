#!/usr/bin/env bash
# Helm for the charts' tests: built from the modules pinned in tests/cluster/helm/go.sum where the cache lacks it (about two minutes on
# two cores). LCL_HELM_BIN names a program that is there already. Prints the program's path.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/go-tool.sh

if [ -n "${LCL_HELM_BIN:-}" ]; then
  [ -x "$LCL_HELM_BIN" ] || { echo "LCL_HELM_BIN=$LCL_HELM_BIN is no program: point it to Helm 4, or unset it" >&2; exit 1; }
  echo "$LCL_HELM_BIN"
  exit
fi
go_tool helm tests/cluster/helm helm.sh/helm/v4 "-X helm.sh/helm/v4/internal/version.version=vVERSION" helm.sh/helm/v4/cmd/helm
