#!/usr/bin/env bash
# Installs the Debian packages a build needs, when they are missing and may be installed; else says which are missing.
# debian.sh [cluster] [PACKAGE...] looks besides for what clusters for tests need, and for further ones.
set -euo pipefail
missing=()
need() { # need COMMAND PACKAGE
  command -v "$1" > /dev/null 2>&1 || missing+=("$2")
}
if [ "${1:-}" = cluster ]; then
  shift
  export PATH=$PATH:/usr/sbin:/sbin
  need gcc gcc
  need curl curl
  need etcd etcd-server
  # Of a program whose clock is wrong.
  compgen -G '/usr/lib/*/faketime/libfaketimeMT.so.1' > /dev/null || missing+=(libfaketime)
  # Nodes need root; without it the tests on nodes are skipped.
  if [ "$(id -u)" -eq 0 ]; then
    need containerd containerd
    need runc runc
    need ip iproute2
    need sysctl procps
    need iptables iptables
    need conntrack conntrack
    need nft nftables
    [ -x /usr/lib/cni/bridge ] || missing+=(containernetworking-plugins)
  fi
fi
need g++ g++
need cmake cmake
need nasm nasm
need python3 python3
# Debian has venv without what it unpacks.
python3 -c 'import ensurepip, venv' > /dev/null 2>&1 || missing+=(python3-venv)
python3 -m pip --version > /dev/null 2>&1 || missing+=(python3-pip)
for package in "$@"; do
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null | grep --quiet '^installed$' || missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null 2>&1; then
  echo "installing ${missing[*]}"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" > /dev/null
else
  echo "these packages are needed and cannot be installed from here: ${missing[*]}" >&2
  exit 1
fi
