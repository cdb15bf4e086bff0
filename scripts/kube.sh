#!/usr/bin/env bash
# The programs of a real Kubernetes for the tests on clusters: kube-apiserver, kube-controller-manager, kube-scheduler, kubelet, kube-proxy
# and kubectl. LCL_KUBE_BIN names a folder that has them already. Where the cache lacks them: official release binaries if their site
# answers, checked against the digests published beside them; else built from the modules pinned in tests/cluster/kube/go.sum (about
# ten minutes on two cores). Prints the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
source scripts/go-tool.sh
PROGRAMS=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
MODULE=tests/cluster/kube

if [ -n "${LCL_KUBE_BIN:-}" ]; then
  for p in "${PROGRAMS[@]}"; do
    [ -x "$LCL_KUBE_BIN/$p" ] || { echo "LCL_KUBE_BIN=$LCL_KUBE_BIN has no program $p: point it to a folder with ${PROGRAMS[*]}, or unset it" >&2; exit 1; }
  done
  echo "$LCL_KUBE_BIN"
  exit
fi

VERSION=$(go_module_version $MODULE k8s.io/kubernetes)
SITE=https://dl.k8s.io/release/v$VERSION/bin/linux/amd64
v=k8s.io/component-base/version
FLAGS="-X $v.gitVersion=v$VERSION -X $v.gitMajor=${VERSION%%.*} -X $v.gitMinor=$(cut -d. -f2 <<< "$VERSION") -X $v.gitTreeState=clean"

fill() { # fill DIR
  local p digest
  if curl --silent --fail --location --connect-timeout 5 --max-time 10 --output /dev/null "$SITE/kubectl.sha256"; then
    for p in "${PROGRAMS[@]}"; do
      echo "fetching $p $VERSION" >&2
      curl --silent --show-error --fail --location --output "$1/$p" "$SITE/$p"
      digest=$(curl --silent --show-error --fail --location "$SITE/$p.sha256")
      echo "$digest  $1/$p" | sha256sum --check --quiet >&2
      chmod +x "$1/$p"
    done
  else
    echo "building Kubernetes $VERSION from its modules: about ten minutes on two cores, once" >&2
    # All in one go, so that one is linked while others are compiled.
    go_build $MODULE "$1" "$FLAGS" "${PROGRAMS[@]/#/k8s.io/kubernetes/cmd/}"
  fi
}

entry=$(go_entry "kube-$VERSION" $MODULE "$FLAGS" "${PROGRAMS[*]}")
cache_fill "$entry" fill
cache_link "$entry" "kube-$VERSION"
echo "$PWD/.deps/kube-$VERSION"
