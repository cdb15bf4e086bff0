# To be sourced after scripts/cache.sh: a program for cargo, prebuilt where it can be had, else built from its crate.

# cargo_tool NAME PINS: makes .deps/NAME-VERSION lead to the program and prints its path. PINS is a file with the wheel's version and
# SHA-256; the wheel's last words are the crate's name.
cargo_tool() {
  local name=$1 pins=$2 version entry
  version=$(sed -nE "s/^[^#=]*$name==([0-9.]+) .*/\1/p" "$pins")
  entry=$(cache_entry "$name-$version" "$pins" scripts/unpack_wheels.py - <<< "$(uname -sm)")
  cache_fill "$entry" cargo_tool_fill "$name" "$pins" "$version" >&2
  cache_link "$entry" "$name-$version"
  echo "$PWD/.deps/$name-$version/$name"
}

cargo_tool_fill() { # cargo_tool_fill NAME PINS VERSION DIR
  local name=$1 pins=$2 version=$3 folder=$4
  echo "fetching $name $version"
  if [ "$(uname -sm)" = "Linux x86_64" ] && fetch_wheels "$folder/.wheels" "$pins" --implementation py --abi none; then
    python3 scripts/unpack_wheels.py program "$folder/.wheels" "$folder"
  else
    # Not optimised: building it takes longer than all that it ever does.
    echo "no prebuilt $name $version could be fetched: building it (minutes)"
    cargo install --quiet --locked --debug --root "$folder/.root" --target-dir "$folder/.target" "$name@$version"
    mv "$folder/.root/bin/$name" "$folder/$name"
  fi
  rm -rf "$folder/.wheels" "$folder/.root" "$folder/.target"
}
