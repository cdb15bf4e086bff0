#!/usr/bin/env bash
# A Python of its own with the packages of a list: python.sh NAME REQUIREMENTS makes .deps/NAME lead to it, fetched where the cache lacks
# it, and prints the path of its `python`.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/cache.sh
name=$1 requirements=$2

fill() { # fill DIR
  echo "fetching the Python packages of $requirements" >&2
  python3 -m venv "$1"
  "$1/bin/python" -m pip install --quiet --requirement "$requirements" >&2
  # These name the folder, which gets another name; `python -m` does without.
  find "$1/bin" -type f -exec grep --files-with-matches --null --fixed-strings "$1" {} + | xargs --null rm
}

# It is tied to the Python it was made with.
version=$(python3 -c 'import platform; print(platform.python_version())')
entry=$(cache_entry "$name-$version" "$requirements" - <<< "$(python3 -c 'import sys; print(sys.version, sys.base_prefix)')")
cache_fill "$entry" fill
cache_link "$entry" "$name"
echo "$PWD/.deps/$name/bin/python"
