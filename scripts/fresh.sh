#!/usr/bin/env bash
# What a new machine would do: fresh.sh [FOLDER] makes a minimal Debian 12 in FOLDER (by default a new one below TMPDIR), with git, make
# and certificates only; puts a clone of HEAD and this machine's Rust into it, and runs the README's two commands there, with an empty
# cache. Says how long each step took, and removes the root. As root, on Linux on x86-64; 30 GB and some hours for all.
#
# ONLY=deps|demo|test runs a part: deps all that the two commands fetch and build before the project's own crates.
# RUST=install leaves Rust out of the root, so that scripts/rust.sh has to install it. KEEP=yes leaves the root for a look.
#
# The package clients' settings of this machine (mirror, proxy, certificates, indices) are taken along, no package and no cache.
# Everything runs in namespaces of its own for processes and mounts: when it ends, however it ends, no process and no mount is left.
set -euo pipefail
cd "$(dirname "$0")/.."
SUITE=bookworm
PROJECT=/root/lcl
RUST_FOLDER=/opt/rust
ONLY=${ONLY:-all}

case $ONLY in
  all) STEPS=(demo test) ;;
  demo | test) STEPS=("$ONLY") ;;
  deps) STEPS=(deps cluster-deps images-deps helm s3 emoji test-py) ;;
  *) echo "ONLY=$ONLY is no part: deps, demo or test" >&2; exit 2 ;;
esac
[ "$(id -u)" -eq 0 ] || { echo "a root file system with mounts in it can only be made by root" >&2; exit 1; }

# The second half of this script, in the namespaces: mounts, and the commands themselves.
if [ "${1:-}" = --inside ]; then
  root=$2
  # A mount of its own: without one, tests could not make namespaces of their own within it.
  mount --rbind "$root" "$root"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount -t tmpfs -o mode=755 tmpfs "$root/run"
  # Clusters for tests tell by these locks which names and addresses are taken on this machine: the network is shared.
  mkdir -p /run/lcl-cluster "$root/run/lcl-cluster"
  mount --bind /run/lcl-cluster "$root/run/lcl-cluster"
  export HOME=/root PATH=$RUST_FOLDER/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
  code=0
  for step in "${STEPS[@]}"; do
    printf '\n=== make %s\n' "$step"
    begin=$(date +%s)
    # Not what ONLY means here: to `make test` it is a part of a name.
    chroot "$root" env -u ONLY bash -c "cd $PROJECT && exec make $step" || code=$?
    echo "make $step: $(($(date +%s) - begin)) s, exit code $code" >> "$root/times"
    [ $code -eq 0 ] || break
  done
  exit $code
fi

# A Debian of this machine knows a mirror that answers.
mirror() {
  local site
  site=$(. /etc/os-release && [ "${ID:-}" = debian ] && apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -n 1) || true
  echo "$site"
}

settings_of_apt() { # settings_of_apt ROOT
  local codename
  # How to reach a mirror; no hook that a program of this machine has put there.
  apt-config dump | grep -E '^Acquire::(http|https|Retries|Check-|ForceIP)' > "$1/etc/apt/apt.conf.d/90host" || true
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  if [ "$codename" = $SUITE ]; then
    rm -f "$1/etc/apt/sources.list"
    copy "$1" /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/auth.conf /etc/apt/auth.conf.d /etc/apt/keyrings /etc/apt/trusted.gpg.d
  fi
}

copy() { # copy ROOT PATH...: those that are there
  local root=$1 path
  shift
  for path in "$@"; do
    [ -e "$path" ] || continue
    mkdir -p "$root/${path%/*}"
    cp --archive --dereference --no-target-directory "$path" "$root/$path"
  done
}

settings_of_clients() { # settings_of_clients ROOT
  local name home=${HOME:-/root}
  copy "$1" /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/npmrc /usr/local/share/ca-certificates
  env -u TMPDIR chroot "$1" update-ca-certificates > "$ROOT.log" 2>&1 || { cat "$ROOT.log" >&2; return 1; }
  for name in .pip .config/pip .npmrc .config/go/env .cargo/config.toml; do
    [ -e "$home/$name" ] || continue
    mkdir -p "$1/root/$(dirname "$name")"
    cp --archive --dereference --no-target-directory "$home/$name" "$1/root/$name"
  done
}

# Leaves those variables that tell package clients where to go and whom to trust, and what decides how this script runs.
clear_environment() {
  local name
  for name in $(compgen -e); do
    case $name in
      # Folders of this machine.
      PIP_FIND_LINKS | CARGO_TARGET_DIR | CARGO_BUILD_* | CARGO_HOME | CARGO_MAKEFLAGS) unset "$name" ;;
      *_PROXY | *_proxy | PIP_* | NPM_* | npm_config_* | GOPROXY | GOSUMDB | GONOSUMDB | GOPRIVATE | GOFLAGS) ;;
      CARGO_* | RUSTUP_DIST_SERVER | RUSTUP_UPDATE_ROOT) ;;
      SSL_CERT_FILE | SSL_CERT_DIR | CURL_CA_BUNDLE | REQUESTS_CA_BUNDLE | GIT_SSL_CAINFO | NODE_EXTRA_CA_CERTS) ;;
      PATH | HOME | TERM | CI | ONLY) ;;
      *) unset "$name" ;;
    esac
  done
}

scripts/debian.sh debootstrap
ROOT=${1:-$(mktemp --directory "${TMPDIR:-/tmp}/lcl-fresh.XXXXXX")}
mkdir -p "$ROOT"
ROOT=$(realpath "$ROOT")
[ -z "$(ls -A "$ROOT")" ] || { echo "$ROOT is not empty" >&2; exit 1; }
# Mounts are in another namespace and gone by then; should one be seen from here, it is not followed.
remove() { rm -f "$ROOT.log"; [ "${KEEP:-}" = yes ] || rm -rf --one-file-system "$ROOT"; }
trap remove EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

begin=$(date +%s)
MIRROR=$(mirror)
echo "making a minimal Debian ($SUITE) in $ROOT"
debootstrap --variant=minbase --include=git,make,ca-certificates $SUITE "$ROOT" ${MIRROR:+"$MIRROR"} > "$ROOT.log" 2>&1 || { tail -n 20 "$ROOT.log" >&2; exit 1; }
chmod 755 "$ROOT"
settings_of_apt "$ROOT"
settings_of_clients "$ROOT"
[ -z "$(git status --porcelain)" ] || echo "what is not committed does not take part" >&2
git clone --quiet --no-hardlinks . "$ROOT$PROJECT"
if [ "${RUST:-}" != install ]; then
  mkdir -p "$ROOT$RUST_FOLDER"
  tar --create --directory "$(rustc --print sysroot)" --exclude ./share . | tar --extract --directory "$ROOT$RUST_FOLDER"
fi
echo "making the root: $(($(date +%s) - begin)) s" > "$ROOT/times"

export ONLY
(
  clear_environment
  exec unshare --mount --propagation private --pid --fork --kill-child --mount-proc scripts/fresh.sh --inside "$ROOT"
) || code=$?
printf '\n%s, %s processors\n' "$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)"
cat "$ROOT/times"
echo "the cache: $(du --summarize --human-readable "$ROOT/root/.cache/lcl" 2> /dev/null | cut -f1); the clone: $(du --summarize --human-readable "$ROOT$PROJECT" | cut -f1)"
[ "${KEEP:-}" != yes ] || echo "the root stays in $ROOT"
exit "${code:-0}"
