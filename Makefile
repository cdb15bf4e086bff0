# Every target installs what it uses (into .deps/, plus Debian packages where it may) and can be run twice.
# `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Build inside the clone, wherever the user's own settings point.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
CARGO_DENY_VERSION := 0.20.2
TOOLS := .deps/tools/bin

.PHONY: help deps demo test verify fix bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

deps: ## fetch libtorch and the system packages a build needs
	@scripts/debian.sh
	@scripts/libtorch.sh

demo: deps ## train on 7,226 emoji for five minutes and show what the model learnt
	@scripts/npm-emoji.sh
	cargo build --release --quiet -p lcl -p lcl-trainer -p lcl-coordinator
	cargo build --release --quiet -p lcl-data --example pack_emoji
	@scripts/demo.sh

test: deps .deps/test-py/.complete ## run every test
	cargo test --workspace --no-fail-fast

verify: deps $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION) ## formatting, lints, licences; changes no file of the project
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	@scripts/deny.sh $(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION)

fix: deps ## format and write the generated files anew
	cargo fmt --all
	cargo run --quiet -p lcl-crds --example generate
	cargo run --quiet -p lcl-proto --example generate

bench: deps ## compare speed and memory with PyTorch, side by side (about 25 minutes)
	@bench/run.sh

clean: ## remove what was built; .deps stays
	cargo clean

# Python with numpy alone, for the test that reads exported weights from outside.
.deps/test-py/.complete: tests/python/requirements.txt
	python3 -m venv .deps/test-py
	.deps/test-py/bin/python -m pip install --quiet --requirement $<
	touch $@

$(TOOLS)/cargo-deny-$(CARGO_DENY_VERSION):
	cargo install --quiet --locked --root .deps/tools --target-dir .deps/tools/target cargo-deny@$(CARGO_DENY_VERSION)
	rm -rf .deps/tools/target
	mv $(TOOLS)/cargo-deny $@
