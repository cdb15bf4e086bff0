# To be sourced after scripts/cache.sh: programs built from Go modules.

# go_module_version FOLDER MODULE: what FOLDER/go.mod asks for, without its v.
go_module_version() {
  local version
  version=$(sed -nE "s|^(require)?[[:space:]]*$2 v([0-9.]+)( .*)?\$|\2|p" "$1/go.mod")
  [ -n "$version" ] || { echo "$1/go.mod names no $2" >&2; return 1; }
  echo "$version"
}

# go_entry NAME-VERSION FOLDER WORD...: the cache's entry for programs of the module in FOLDER; the WORDs are what else they depend on.
go_entry() {
  local name=$1 folder=$2 go
  shift 2
  go=$(scripts/go.sh version) || return
  cache_entry "$name" "$folder/go.mod" "$folder/go.sum" - <<< "$go $(declare -f go_build) $*"
}

# go_build FOLDER OUT LDFLAGS PACKAGE...: builds programs into OUT, a folder.
go_build() {
  local folder=$1 out=$2 flags=$3 go
  shift 3
  go=$(scripts/go.sh)
  # The user's own GOFLAGS have no part in it. What a debugger needs is not written: -s -w would throw it away, and it is a tenth of the
  # work. The same flags for all programs, so that a package that several have in common is compiled once.
  (cd "$folder" && CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS= "$go" build -mod=readonly -trimpath -buildvcs=false \
    -gcflags=all=-dwarf=false -ldflags "-s -w $flags" -o "$out/" "$@")
}

# go_tool NAME FOLDER MODULE LDFLAGS PACKAGE: makes .deps/NAME-VERSION lead to the program NAME, built where the cache lacks it, and
# prints its path. VERSION in LDFLAGS stands for the module's.
go_tool() {
  local name=$1 folder=$2 module=$3 flags=$4 package=$5 version entry
  version=$(go_module_version "$folder" "$module")
  flags=${flags//VERSION/$version}
  entry=$(go_entry "$name-$version" "$folder" "$flags" "$package")
  cache_fill "$entry" go_tool_fill "$name $version" "$folder" "$flags" "$package"
  cache_link "$entry" "$name-$version"
  echo "$PWD/.deps/$name-$version/$name"
}

go_tool_fill() { # go_tool_fill WHAT FOLDER LDFLAGS PACKAGE DIR
  echo "building $1 from its modules, once" >&2
  go_build "$2" "$5" "$3" "$4"
}
