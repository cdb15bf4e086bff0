#!/usr/bin/env bash
# Puts programs into OCI images, without an engine: assemble.sh PROGRAMS OUT [NAME...]. PROGRAMS is the folder of images/programs.sh;
# OUT gets NAME.tar, an archive of an OCI layout, and images.json. By default all images whose program is there, and pause.
#
# The digest depends on the programs, on libtorch, on the Debian packages whose files are taken, and on the pinned umoci; not on the
# time, the folder, the user or the registry's name. LCL_IMAGE_REGISTRY (default lcl.dev) and LCL_IMAGE_TAG (default the version in
# Cargo.toml) are the name under which an archive is imported.
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
LIBTORCH=${LIBTORCH:-.deps/libtorch-2.11.0}
UMOCI=$(images/tools/umoci.sh)
USER_ID=65532 # "nonroot" by convention; operator/core gives pods the same
EPOCH=1970-01-01T00:00:00Z
export LC_ALL=C
umask 022
mkdir -p "$OUT"
WORK=$(mktemp -d "$OUT/.work.XXXXXX")
trap 'rm -rf "$WORK"' EXIT

put() { # put FILE ROOT PATH [MODE]
  install -D -m "${4:-644}" "$1" "$2/$3"
}

# What every image has besides its program: a user, a place for temporary files, certificates, names of hosts, licences.
base() { # base ROOT
  local root=$1 package
  install -d -m 755 "$root/etc/ssl/certs" "$root/usr/local/bin"
  install -d -m 1777 "$root/tmp"
  printf 'root:x:0:0:root:/:/sbin/nologin\nnonroot:x:%s:%s:nonroot:/tmp:/sbin/nologin\n' $USER_ID $USER_ID > "$root/etc/passwd"
  printf 'root:x:0:\nnonroot:x:%s:\n' $USER_ID > "$root/etc/group"
  printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
  # Mozilla's list as packaged, not /etc/ssl: authorities that this machine's owner trusts are none of an image's business.
  find /usr/share/ca-certificates/mozilla -name '*.crt' | sort | xargs cat > "$root/etc/ssl/certs/ca-certificates.crt"
  put LICENSE "$root" usr/share/doc/lcl/LICENSE
  # Static programs hold glibc as well.
  for package in ca-certificates libc6; do
    put "/usr/share/doc/$package/copyright" "$root" "usr/share/doc/$package/copyright"
  done
}

needed() { # needed FILE: the libraries it asks for
  readelf --dynamic --wide "$1" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p'
}

# Every library that PROGRAM needs, directly or not, in two roots: libtorch's beside the program, where its run path points, and the
# system's where the loader looks. libtorch is not taken whole: most of it is for CUDA, whose drivers come with a node.
libraries() { # libraries PROGRAM SYSTEM_ROOT LIBTORCH_ROOT
  local system_root=$2 libtorch_root=$3 queue=("$1") seen=" " file name found
  while [ ${#queue[@]} -gt 0 ]; do
    file=${queue[0]}
    queue=("${queue[@]:1}")
    for name in $(needed "$file"); do
      [[ $seen == *" $name "* ]] && continue
      seen+="$name "
      if [ -e "$LIBTORCH/lib/$name" ]; then
        found=$LIBTORCH/lib/$name
        put "$found" "$libtorch_root" "usr/local/lib/$name" 755
        # The table of local symbols is a fifth of libtorch and serves debuggers alone.
        strip --strip-unneeded "$libtorch_root/usr/local/lib/$name"
      else
        found=$(system_library "$name")
        if [[ $name == ld-linux-* ]]; then
          # Programs name their loader by this path.
          put "$found" "$system_root" "lib64/$name" 755
        else
          put "$found" "$system_root" "lib/x86_64-linux-gnu/$name" 644
        fi
      fi
      queue+=("$found")
    done
  done
}

system_library() { # system_library NAME: its file
  local folder
  for folder in /lib/x86_64-linux-gnu /usr/lib/x86_64-linux-gnu /lib64; do
    [ -e "$folder/$1" ] && { realpath "$folder/$1"; return; }
  done
  echo "$1 is needed and neither in $LIBTORCH/lib nor among the system's libraries" >&2
  return 1
}

licenses_of_libraries() { # licenses_of_libraries SYSTEM_ROOT LIBTORCH_ROOT
  local package file
  for package in libgcc-s1 libstdc++6; do
    put "/usr/share/doc/$package/copyright" "$1" "usr/share/doc/$package/copyright"
  done
  [ -d "$LIBTORCH/licenses" ] || { echo "$LIBTORCH has no licenses/, which an image with libtorch has to carry: run 'make deps' with LIBTORCH unset, or put them there" >&2; return 1; }
  while read -r file; do
    put "$LIBTORCH/licenses/$file" "$2" "usr/share/doc/libtorch/$file"
  done < <(cd "$LIBTORCH/licenses" && find . -type f | sort)
}

layer() { # layer LAYOUT NAME ROOT WHAT: adds the folder ROOT as a layer
  tar --directory="$3" --sort=name --format=gnu --mtime=@0 --owner=0 --group=0 --numeric-owner --create --file="$WORK/layer.tar" .
  "$UMOCI" raw add-layer --image "$1:$2" --compress gzip --history.created $EPOCH --history.author lcl --history.created_by "$4" "$WORK/layer.tar"
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
  base "$WORK/base"
  if [ "$name" = pause ]; then
    tag=test
    gcc -static -Os -s -Wl,--build-id=none -o "$WORK/pause" images/test/pause.c
    put "$WORK/pause" "$WORK/program" usr/local/bin/pause 755
  else
    put "$PROGRAMS/$name" "$WORK/program" "usr/local/bin/$name" 755
  fi
  if readelf --program-headers --wide "$WORK/program/usr/local/bin/$name" | grep --quiet INTERP; then
    install -d "$WORK/libtorch"
    libraries "$WORK/program/usr/local/bin/$name" "$WORK/base" "$WORK/libtorch"
    licenses_of_libraries "$WORK/base" "$WORK/libtorch"
    licenses+=" AND BSD-3-Clause AND GPL-3.0-or-later WITH GCC-exception-3.1 AND LicenseRef-NVIDIA-CUDA-EULA"
  fi
  # What changes least lies lowest: a new program moves a few megabytes, not libtorch.
  layer "$layout" "$name" "$WORK/base" "system files"
  [ ! -d "$WORK/libtorch" ] || layer "$layout" "$name" "$WORK/libtorch" "libtorch"
  layer "$layout" "$name" "$WORK/program" "$name"
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
