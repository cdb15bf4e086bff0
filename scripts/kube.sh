#!/usr/bin/env bash
# The programs of a real Kubernetes for the tests on clusters, into .deps/kube-VERSION/: kube-apiserver, kube-controller-manager,
# kube-scheduler, kubelet, kube-proxy and kubectl. LCL_KUBE_BIN names a folder that has them already. Official release binaries
# where their site answers, checked against the digests published beside them; else built from the modules pinned in
# tests/cluster/kube/go.sum (about ten minutes on two cores, once). Prints the folder.
set -euo pipefail
cd "$(dirname "$0")/.."
PROGRAMS=(kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl)
MODULE=tests/cluster/kube
VERSION=$(sed -nE 's|^(require)?[[:space:]]*k8s.io/kubernetes v([0-9.]+)( .*)?$|\2|p' $MODULE/go.mod)
SITE=https://dl.k8s.io/release/v$VERSION/bin/linux/amd64

if [ -n "${LCL_KUBE_BIN:-}" ]; then
  for p in "${PROGRAMS[@]}"; do
    [ -x "$LCL_KUBE_BIN/$p" ] || { echo "LCL_KUBE_BIN=$LCL_KUBE_BIN has no program $p: point it to a folder with ${PROGRAMS[*]}, or unset it" >&2; exit 1; }
  done
  echo "$LCL_KUBE_BIN"
  exit
fi

DIR=$PWD/.deps/kube-$VERSION
if [ ! -f "$DIR/.complete" ]; then
  mkdir -p "$DIR"
  # One at a time: two targets started together would build the same files.
  exec 9> "$DIR/.lock"
  flock 9
fi
if [ ! -f "$DIR/.complete" ]; then
  if curl --silent --fail --location --connect-timeout 5 --max-time 10 --output /dev/null "$SITE/kubectl.sha256"; then
    for p in "${PROGRAMS[@]}"; do
      echo "fetching $p $VERSION" >&2
      curl --silent --show-error --fail --location --output "$DIR/$p.part" "$SITE/$p"
      digest=$(curl --silent --show-error --fail --location "$SITE/$p.sha256")
      echo "$digest  $DIR/$p.part" | sha256sum --check --quiet >&2
      chmod +x "$DIR/$p.part"
      mv "$DIR/$p.part" "$DIR/$p"
    done
  else
    command -v go > /dev/null || { echo "the site of Kubernetes' releases does not answer, and building it needs Go 1.26: install it, or set LCL_KUBE_BIN to a folder with ${PROGRAMS[*]}" >&2; exit 1; }
    echo "building Kubernetes $VERSION from its modules: about ten minutes on two cores, once" >&2
    v=k8s.io/component-base/version
    flags="-s -w -X $v.gitVersion=v$VERSION -X $v.gitMajor=${VERSION%%.*} -X $v.gitMinor=$(cut -d. -f2 <<< "$VERSION") -X $v.gitTreeState=clean"
    # All in one go, so that one is linked while others are compiled.
    mkdir -p "$DIR/part"
    (cd $MODULE && CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "$flags" -o "$DIR/part/" "${PROGRAMS[@]/#/k8s.io/kubernetes/cmd/}")
    mv "$DIR"/part/* "$DIR/"
    rmdir "$DIR/part"
  fi
  touch "$DIR/.complete"
fi
echo "$DIR"
