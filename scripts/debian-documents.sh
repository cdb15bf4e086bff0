#!/usr/bin/env bash
# Makes .deps/documents lead to what the demo with documents is made of besides the emoji: wordnet/ (the nouns of WordNet 3.0) and clipart/
# (Open Clip Art as PNG), out of two Debian packages (137 MB to fetch, once; 160 MB unpacked). They are unpacked, not installed. Versions and SHA-256
# are pinned. DEBS=FOLDER takes the packages from a folder, where the archive does not serve these versions.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
# PACKAGE VERSION SHA-256, those of Debian 12.
PACKAGES="\
openclipart-png 1:0.18+dfsg-19 f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02
wordnet-base 1:3.0-37 61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752"

# Prints the path of the package's file, after it was checked.
fetch() { # fetch DIR PACKAGE VERSION SHA256
  local folder=$1 package=$2 version=$3 wanted=$4 file sum served
  file=${package}_${version//:/%3a}_all.deb
  if [ -n "${DEBS:-}" ]; then
    [ -f "$DEBS/$file" ] || { echo "$DEBS holds no $file" >&2; return 1; }
    folder=$(realpath "$DEBS")
  else
    command -v apt-get > /dev/null || { echo "$package comes from Debian's archive, which needs apt-get; else name a folder that holds $file: DEBS=FOLDER" >&2; return 1; }
    echo "fetching $package $version" >&2
    if ! (cd "$folder" && apt-get download "$package=$version") > "$folder/apt.log" 2>&1; then
      served=$(apt-cache policy "$package" 2> /dev/null | sed -n 's/^ *Candidate: //p')
      case $served in
        "" | "(none)") echo "apt-get knows no $package: run apt-get update first; else name a folder that holds $file: DEBS=FOLDER" >&2 ;;
        "$version") cat "$folder/apt.log" >&2 ;;
        *) echo "the archive serves $package $served, the demo's pictures are out of $version: name a folder that holds $file: DEBS=FOLDER" >&2 ;;
      esac
      return 1
    fi
  fi
  sum=$(sha256sum "$folder/$file" | cut -d' ' -f1)
  [ "$sum" = "$wanted" ] || { echo "$file has SHA-256 $sum, expected $wanted" >&2; return 1; }
  echo "$folder/$file"
}

fill() { # fill DIR
  local work=$1/.work package version sum file
  mkdir "$work"
  # The lists of a fresh machine are empty.
  if [ -z "${DEBS:-}" ] && [ "$(id -u)" -eq 0 ] && command -v apt-cache > /dev/null && [ -z "$(apt-cache policy wordnet-base 2> /dev/null)" ]; then
    apt-get update -qq
  fi
  while read -r package version sum; do
    file=$(fetch "$work" "$package" "$version" "$sum")
    dpkg-deb --extract "$file" "$work/root"
  done <<< "$PACKAGES"
  mkdir "$1/wordnet"
  cp "$work/root/usr/share/wordnet/"{data.noun,index.noun,noun.exc} "$1/wordnet/"
  mv "$work/root/usr/share/openclipart/png" "$1/clipart"
  for package in wordnet-base openclipart-png; do
    cp "$work/root/usr/share/doc/$package/copyright" "$1/copyright-$package"
  done
  rm -r "$work"
}

entry=$(cache_entry documents-1 - <<< "$PACKAGES")
cache_fill "$entry" fill
cache_link "$entry" documents
