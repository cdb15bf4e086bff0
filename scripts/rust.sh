#!/usr/bin/env bash
# Sees to it that cargo, clippy and rustfmt are there, in the version of rust-toolchain.toml or a later one. Where they are not, they are
# installed by rustup; where there is no rustup, by its official installer, whose version and SHA-256 are in scripts/rust.txt. Both
# write where rustup always does (CARGO_HOME, RUSTUP_HOME); no file of the user's shell is changed.
set -euo pipefail
cd "$(dirname "$0")/.."
VERSION=$(sed -nE 's/^channel = "(.*)"$/\1/p' rust-toolchain.toml)

present() {
  local has
  has=$(rustc --version 2> /dev/null | cut -d' ' -f2) &&
    printf '%s\n' "$VERSION" "$has" | sort --check=quiet --version-sort &&
    cargo clippy --version > /dev/null 2>&1 && cargo fmt --version > /dev/null 2>&1
}

install_rustup() {
  local digest path site=${RUSTUP_UPDATE_ROOT:-https://static.rust-lang.org/rustup} work
  [ "$(uname -sm)" = "Linux x86_64" ] || return 1
  command -v curl > /dev/null 2>&1 || scripts/debian.sh curl ca-certificates || return 1
  read -r digest path < scripts/rust.txt
  work=$(mktemp --directory)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$work'" EXIT
  curl --silent --show-error --fail --location --connect-timeout 10 --output "$work/rustup-init" "$site/archive/$path" || return 1
  echo "$digest  $work/rustup-init" | sha256sum --check --quiet >&2 || return 1
  chmod +x "$work/rustup-init"
  # A Rust of the distribution may stay: rustup's comes first on the PATH.
  RUSTUP_INIT_SKIP_PATH_CHECK=yes "$work/rustup-init" -y --quiet --no-modify-path --profile minimal --default-toolchain "$VERSION" --component clippy --component rustfmt > /dev/null
  echo "for your own shell: . ${CARGO_HOME:-$HOME/.cargo}/env"
}

present && exit
echo "installing Rust $VERSION"
if command -v rustup > /dev/null 2>&1; then
  rustup toolchain install "$VERSION" --profile minimal --component clippy --component rustfmt --no-self-update || true
else
  install_rustup || true
fi
hash -r
present || {
  echo "Rust $VERSION or later is needed, with clippy and rustfmt, and could not be installed from here: install it as rustup.rs says," \
    "or name a toolchain that rustup has, with RUSTUP_TOOLCHAIN" >&2
  exit 1
}
