#!/usr/bin/env bash
# Puts programs into OCI images, without an engine: assemble.sh PROGRAMS OUT [NAME...]. PROGRAMS is the folder of images/programs.sh;
# OUT gets NAME.tar, an archive of an OCI layout, and images.json. By default all images whose program is there, and pause.
#
# The digest depends on the programs, on libtorch, on the Debian packages whose files are taken, and on the pinned umoci; not on the
# time, the folder, the user or the registry's name. LCL_IMAGE_REGISTRY (default lcl.dev) and LCL_IMAGE_TAG (default the version in
# Cargo.toml) are the name under which an archive is imported. LCL_IMAGE_COMPRESSION (default gzip, or none) is that of the layers.
set -euo pipefail
PROGRAMS=$(realpath "$1")
OUT=$(realpath -m "$2")
shift 2
HERE=$(realpath "$(dirname "$0")")
cd "$HERE/.."
[ $# -gt 0 ] || set -- lcl-operator lcl-coordinator lcl-trainer pause
VERSION=$(sed -nE '/^\[workspace.package\]/,/^\[/s/^version = "(.*)"/\1/p' Cargo.toml)
REGISTRY=${LCL_IMAGE_REGISTRY-lcl.dev}
TAG=${LCL_IMAGE_TAG:-$VERSION}
UMOCI=$(images/tools/umoci.sh)
USER_ID=65532 # as in images/roots.sh
EPOCH=1970-01-01T00:00:00Z
export LC_ALL=C
umask 022
mkdir -p "$OUT"
WORK=$(mktemp -d "$OUT/.work.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

layer() { # layer LAYOUT NAME ROOT WHAT: adds the folder ROOT as a layer
  tar --directory="$3" --sort=name --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file="$WORK/layer.tar" .
  "$UMOCI" raw add-layer --image "$1:$2" --compress "${LCL_IMAGE_COMPRESSION:-gzip}" --history.created $EPOCH --history.author lcl --history.created_by "$4" "$WORK/layer.tar"
  rm -rf "$WORK/layer.tar" "$3"
}

describe() { # describe LAYOUT NAME LICENSES: what a container of it runs and how
  "$UMOCI" config --image "$1:$2" --no-history --created $EPOCH --author lcl --os linux --architecture amd64 \
    --config.user $USER_ID:$USER_ID --config.workingdir / --config.entrypoint "/usr/local/bin/$2" \
    --config.env PATH=/usr/local/bin --config.env HOME=/tmp --config.env SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    --config.label "org.opencontainers.image.title=$2" --config.label "org.opencontainers.image.version=$VERSION" \
    --config.label "org.opencontainers.image.licenses=$3"
}

image() { # image NAME
  local name=$1 layout=$WORK/$1.oci tag=$TAG licenses="Apache-2.0 AND LGPL-2.1-or-later AND MPL-2.0"
  "$UMOCI" init --layout "$layout"
  "$UMOCI" new --image "$layout:$name"
  images/roots.sh "$PROGRAMS" "$WORK/roots" "$name"
  [ "$name" != pause ] || tag=test
  layer "$layout" "$name" "$WORK/roots/$name/base" "system files"
  if [ -d "$WORK/roots/$name/libtorch" ]; then
    layer "$layout" "$name" "$WORK/roots/$name/libtorch" libtorch
    licenses+=" AND BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1 AND LicenseRef-NVIDIA-CUDA-EULA"
  fi
  layer "$layout" "$name" "$WORK/roots/$name/program" "$name"
  describe "$layout" "$name" "$licenses"
  "$UMOCI" gc --layout "$layout"
  python3 images/name.py "$layout" "${REGISTRY:+$REGISTRY/}$name:$tag" > "$WORK/$name.json"
  tar --directory="$layout" --sort=name --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file="$WORK/$name.tar" blobs index.json oci-layout
  mv "$WORK/$name.tar" "$OUT/$name.tar"
  rm -rf "$layout"
}

made=()
for name in "$@"; do
  [ "$name" = pause ] || [ -e "$PROGRAMS/$name" ] || { echo "no program $name: its image is left out" >&2; continue; }
  image "$name"
  made+=("$WORK/$name.json")
done
[ ${#made[@]} -gt 0 ] || { echo "no image was made: $PROGRAMS has none of $*" >&2; exit 1; }
python3 images/summary.py "$OUT" "${made[@]}"
