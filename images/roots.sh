#!/usr/bin/env bash
# The root file systems of images, in parts: roots.sh PROGRAMS OUT NAME... makes OUT/NAME/base (system files), OUT/NAME/libtorch where
# the program needs it, and OUT/NAME/program. What changes least is to lie lowest: a new program moves a few megabytes, not libtorch.
# Both ways to an image, images/assemble.sh and images/Dockerfile, take these folders.
set -euo pipefail
PROGRAMS=$(realpath "$1")
OUT=$(realpath -m "$2")
shift 2
cd "$(dirname "$0")/.."
LIBTORCH=${LIBTORCH:-.deps/libtorch-2.11.0}
USER_ID=65532 # "nonroot" by convention; operator/core gives pods the same
export LC_ALL=C
umask 022

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
  [ -d "$2" ] || return 0 # without libtorch
  [ -d "$LIBTORCH/licenses" ] || { echo "$LIBTORCH has no licenses/, which an image with libtorch has to carry: run 'make deps' with LIBTORCH unset, or put them there" >&2; return 1; }
  while read -r file; do
    put "$LIBTORCH/licenses/$file" "$2" "usr/share/doc/libtorch/$file"
  done < <(cd "$LIBTORCH/licenses" && find . -type f | sort)
}

for name in "$@"; do
  root=$OUT/$name
  if [ "$name" != pause ] && [ ! -e "$PROGRAMS/$name" ]; then
    echo "no program $name: its image is left out" >&2
    continue
  fi
  rm -rf "$root"
  base "$root/base"
  if [ "$name" = pause ]; then
    mkdir -p "$root/program/usr/local/bin"
    gcc -static -Os -s -Wl,--build-id=none -o "$root/program/usr/local/bin/pause" images/test/pause.c
  else
    put "$PROGRAMS/$name" "$root/program" "usr/local/bin/$name" 755
    put "$PROGRAMS/$name.licenses" "$root/program" usr/share/doc/lcl/LICENSES-OF-CRATES
  fi
  if readelf --program-headers --wide "$root/program/usr/local/bin/$name" | grep --quiet INTERP; then
    libraries "$root/program/usr/local/bin/$name" "$root/base" "$root/libtorch"
    licenses_of_libraries "$root/base" "$root/libtorch"
  fi
done
