#!/usr/bin/env bash
# Runs an image's program as a node would, without an engine (as root): run.sh ARCHIVE [-v FOLDER:PATH]... [-- ARGUMENT...].
# Read-only root, the image's own user, and besides the root only /proc, an empty /tmp and the given folders. It shows that nothing is
# missing in the image; it isolates nothing.
set -euo pipefail
ARCHIVE=$(realpath "$1")
shift
volumes=()
while [ "${1:-}" = -v ]; do
  volumes+=("$2")
  shift 2
done
[ "${1:-}" != -- ] || shift
UMOCI=$("$(dirname "$0")/../tools/umoci.sh")
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
chmod 755 "$WORK"
mkdir "$WORK/layout"
tar --directory="$WORK/layout" --extract --file="$ARCHIVE"
tag=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"])' "$WORK/layout/index.json")
"$UMOCI" unpack --image "$WORK/layout:$tag" "$WORK/bundle" > /dev/null
rm -rf "$WORK/layout"
ROOT=$WORK/bundle/rootfs
# Places to mount at, which a container runtime makes.
mkdir -p "$ROOT/proc"
for volume in "${volumes[@]}"; do
  mkdir -p "$ROOT${volume#*:}"
done
# In a mount namespace of its own: whatever happens, no mount is left behind.
export ROOT CONFIG=$WORK/bundle/config.json VOLUMES="${volumes[*]}"
unshare --mount bash -euo pipefail -c '
  mount --bind "$ROOT" "$ROOT"
  mount -t proc proc "$ROOT/proc"
  mount -t tmpfs tmpfs "$ROOT/tmp"
  for volume in $VOLUMES; do
    mount --bind "${volume%%:*}" "$ROOT${volume#*:}"
  done
  mount -o remount,bind,ro "$ROOT"
  exec python3 - "$@" <<"PY"
import json, os, sys
process = json.load(open(os.environ["CONFIG"]))["process"]
user = process["user"]
environment = dict(variable.split("=", 1) for variable in process["env"])
os.chroot(os.environ["ROOT"])
os.chdir(process["cwd"])
os.setgroups([])
os.setgid(user["gid"])
os.setuid(user["uid"])
arguments = process["args"] + sys.argv[1:]
os.execve(arguments[0], arguments, environment)
PY
' run.sh "$@"
