# Every target installs what it uses (into the cache that scripts/cache.sh describes, plus Debian packages where it may) and can be run
# twice.
# `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules

# Build inside the clone, wherever the user's own settings point.
export CARGO_TARGET_DIR ?= $(CURDIR)/target
# Where rustup puts cargo, also for the shell that runs make while it is being installed.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

.PHONY: help deps emoji documents demo demo-documents test test-deps verify fix bench compat images images-deps images-check helm s3 gcs azurite chaos faults node-loss sim cluster-deps cluster cluster-down clean clean-cache fresh test-py

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

deps: ## fetch libtorch, Rust and the system packages a build needs
	@scripts/debian.sh
	@scripts/rust.sh
	@scripts/libtorch.sh
	@scripts/cuda-headers.sh

# The images of the demo and of the test on nodes.
emoji:
	@scripts/npm-emoji.sh

demo: deps emoji ## train on 7,226 emoji for five minutes and show what the model learnt
	cargo build --release --quiet -p lcl -p lcl-trainer -p lcl-coordinator -p lcl-data --bins --example pack_emoji
	@scripts/demo.sh

# What the demo with documents is made of besides the emoji.
documents:
	@scripts/debian-documents.sh

demo-documents: deps emoji documents ## train on documents made of pictures and definitions, and on the same pictures as pairs (ten minutes)
	cargo build --release --quiet -p lcl -p lcl-trainer -p lcl-coordinator -p lcl-data --bins --example pack_documents
	@scripts/demo_documents.sh

# ONLY=word runs the integration tests whose name has it.
test: deps test-deps ## run every test
	@scripts/test.sh $(ONLY)

# What the tests use besides what a build does.
test-deps: cluster-deps helm s3 gcs azurite emoji images-deps test-py
	@scripts/nextest.sh > /dev/null

# What clusters for tests are made of; the first time it may take ten minutes.
cluster-deps:
	@scripts/debian.sh cluster
	@scripts/kube.sh > /dev/null

# With the programs that the tests use: with all of the workspace's features, so that neither compiles what the other has compiled.
# IMAGES=target/images takes those of `make images` instead.
cluster: deps cluster-deps helm images-deps emoji ## start a real Kubernetes with three nodes on this machine, with the images and the example's data
	cargo build --quiet --workspace --bin lcl --bin lcl-operator --bin lcl-coordinator --bin lcl-trainer --bin lcl-cluster --example pack_emoji
	@images/test/images.sh
	@scripts/example-volumes.sh
	@$(CARGO_TARGET_DIR)/debug/lcl-cluster up --nodes 3 $(foreach image,pause lcl-operator lcl-coordinator lcl-trainer,--image $(or $(IMAGES),$(CARGO_TARGET_DIR)/test-images)/$(image).tar)
	@echo "  export PATH=$$(dirname "$$(scripts/helm.sh)"):\$$PATH"

cluster-down: ## take it down and check that nothing is left
	@$(CARGO_TARGET_DIR)/debug/lcl-cluster down

verify: deps ## formatting, lints, licences; changes no file of the project
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	@scripts/deny.sh "$$(scripts/cargo-deny.sh)"

fix: deps ## format and write the generated files anew
	cargo fmt --all
	cargo run --quiet -p lcl-crds --example generate_crds
	cargo run --quiet -p lcl-proto --example generate_proto

images: deps images-deps ## build the container images into target/images, as archives that containerd and Docker import
	@images/programs.sh
	@images/assemble.sh "$$CARGO_TARGET_DIR/images/programs" "$$CARGO_TARGET_DIR/images"

images-check: deps images-deps ## build the images twice, from two clones in two folders, and compare their digests
	@images/check.sh

# umoci, and the Debian packages of which images take files.
images-deps:
	@scripts/debian.sh ca-certificates binutils
	@images/tools/umoci.sh > /dev/null

# Helm, for the tests of the charts.
helm:
	@scripts/helm.sh > /dev/null

# An S3 server, for the tests of checkpoints and of data.
s3:
	@scripts/s3.sh > /dev/null

# Servers that speak Google Cloud Storage and Azure Blob Storage, for the tests of data.
gcs:
	@scripts/gcs.sh > /dev/null

azurite:
	@scripts/azurite.sh > /dev/null

bench: deps cluster-deps helm ## speed and memory: beside PyTorch and the built-in Job controller, and of large groups and jobs at rest (about 50 minutes)
	@bench/run.sh

# ONLY=everywhere does the first half alone, with PLAN=name one run of it; ONLY=many_runs does the second.
chaos: deps ## faults at every place in both modes (15 minutes), then RUNS random runs from SEED on, summed up (a minute each)
	cargo build --workspace --bin lcl-coordinator --bin lcl-trainer --test chaos
	RUNS=$(RUNS) SEED=$(SEED) PLAN=$(PLAN) cargo test --workspace --test chaos -- $(ONLY) --ignored --nocapture --test-threads=1

compat: deps cluster-deps helm ## the programs of COMMIT against today's (some minutes to build them)
	@scripts/compat.sh "$(COMMIT)"

faults: deps cluster-deps helm ## kill the operator after each of its writes for a job of WORKERS workers, 32 by default (minutes)
	cargo build --workspace --bin lcl-cluster --bin lcl-coordinator --bin lcl-operator --test faults
	WORKERS=$(WORKERS) cargo test --workspace --test faults -- --ignored --nocapture

node-loss: deps cluster-deps helm images-deps emoji ## cut nodes off while a job trains, and print how long it takes until it has its worker back (minutes)
	cargo build --quiet --workspace --bin lcl --bin lcl-operator --bin lcl-coordinator --bin lcl-trainer --bin lcl-cluster --example pack_emoji
	@images/test/images.sh
	cargo test --workspace --test nodes -- --ignored --nocapture

sim: ## RUNS simulated runs from SEED on: the real coordinator and clients on a simulated network (0.1 s each)
	RUNS=$(RUNS) SEED=$(SEED) cargo test --workspace --test simulation -- --ignored --nocapture

clean: ## remove what was built; the cache of what was fetched stays
	cargo clean

clean-cache: ## remove what was fetched or built for all clones (LCL_CACHE, else ~/.cache/lcl), and name it
	@source scripts/cache.sh && cache_clean

# ROOT=FOLDER, where there is room for 30 GB. ONLY=deps, demo or test does a part.
fresh: ## make a minimal Debian 12 in a folder and run `make demo` and `make test` in it, with an empty cache (hours)
	@ONLY=$(ONLY) scripts/fresh.sh $(ROOT)

# Python with numpy alone, for the test that reads exported weights from outside.
test-py:
	@scripts/python.sh test-py tests/python/requirements.txt > /dev/null
