# The cache outside the clone, to be sourced in the project's folder: what is fetched or built from a pinned version is an entry of
# $LCL_CACHE (else $XDG_CACHE_HOME/lcl, else ~/.cache/lcl), shared by all clones. An entry is a folder NAME-VERSION-DIGEST; it is filled
# beside its place and appears by one rename, so what is there is complete. .deps/ holds links into the cache and nothing else.

LCL_CACHE=$(realpath --canonicalize-missing "${LCL_CACHE:-${XDG_CACHE_HOME:-${HOME:?set LCL_CACHE or HOME}/.cache}/lcl}")
export LCL_CACHE

# cache_entry NAME-VERSION FILE...: the entry's name. FILEs (- for standard input) are all that its content depends on.
# Twelve digits of the digest tell a few pins apart; the content is checked against whole ones.
cache_entry() {
  local name=$1 digest
  shift
  # Said here: in a command substitution the shell does not stop at errors.
  digest=$(cat -- "$@" | sha256sum) || return
  echo "$name-${digest:0:12}"
}

# cache_fill ENTRY COMMAND...: makes sure that ENTRY is there. COMMAND gets an empty folder as its last argument and fills it; when it
# fails, nothing is kept. Of several that want the same entry one fills it and the others wait. Must be a statement of its own:
# behind `if` or `||` the shell would not stop at COMMAND's first error.
cache_fill() (
  entry=$1
  shift
  [ ! -d "$LCL_CACHE/$entry" ] || exit 0
  mkdir -p "$LCL_CACHE/locks"
  cache_sweep
  exec 9> "$LCL_CACHE/locks/$entry"
  flock 9
  # Another one may have filled it meanwhile.
  [ ! -d "$LCL_CACHE/$entry" ] || exit 0
  part=$(mktemp --directory "$LCL_CACHE/.$entry.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  # What COMMAND leaves running must not hold the lock.
  "$@" "$part" 9>&-
  chmod 755 "$part"
  # A name that is there after the power failed must not lead to files that are not.
  sync --file-system "$part"
  mv --no-target-directory "$part" "$LCL_CACHE/$entry"
)

# Removes what was left half filled: nobody holds its lock.
cache_sweep() {
  local part entry
  for part in "$LCL_CACHE"/.*-????????????.??????; do
    [ -d "$part" ] || continue
    entry=${part##*/.}
    entry=${entry%.*}
    flock --nonblock "$LCL_CACHE/locks/$entry" rm -rf "$part" || true
  done
}

# cache_link ENTRY NAME: makes .deps/NAME lead to ENTRY. A folder of that name, which earlier versions unpacked in the clone, goes.
cache_link() {
  local target=$LCL_CACHE/$1 link=.deps/$2
  [ "$(readlink "$link" || true)" != "$target" ] || return 0
  mkdir -p .deps
  ln --symbolic --force --no-dereference "$target" "$link.$$"
  [ -L "$link" ] || [ ! -e "$link" ] || mv "$link" "$link.old.$$"
  mv --no-target-directory "$link.$$" "$link"
  rm -rf "$link.old.$$"
}

# cache_clean: removes every entry and says which; what others put into the folder stays, and so does what is being filled.
cache_clean() {
  local path entry gone
  [ -d "$LCL_CACHE" ] || { echo "$LCL_CACHE is not there"; return 0; }
  mkdir -p "$LCL_CACHE/locks"
  cache_sweep
  for path in "$LCL_CACHE"/*-????????????; do
    [ -d "$path" ] && [[ ${path##*-} =~ ^[0-9a-f]{12}$ ]] || continue
    entry=${path##*/}
    printf 'removes %s\t%s\n' "$(du --summarize --human-readable "$path" | cut -f1)" "$path"
    # First out of its place: what is half removed must not look complete.
    gone=$(mktemp --dry-run "$LCL_CACHE/.$entry.XXXXXX")
    mv --no-target-directory "$path" "$gone"
    rm -rf "$gone"
  done
  for path in "$LCL_CACHE"/.*-????????????.??????; do
    [ ! -d "$path" ] || echo "is being filled and stays: $path"
  done
}

# fetch_wheels DIR REQUIREMENTS [OPTION...]: downloads the wheels that REQUIREMENTS pins by version and digest, for Linux on x86-64.
fetch_wheels() {
  local folder=$1 requirements=$2
  shift 2
  python3 -m pip download --quiet --no-deps --require-hashes --only-binary=:all: \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_18_x86_64 \
    --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 \
    --dest "$folder" --requirement "$requirements" "$@"
}
