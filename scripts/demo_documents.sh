#!/usr/bin/env bash
# The demo with documents: trains the job of examples/documents.yaml for some minutes, then that of examples/documents-as-pairs.yaml on the same
# pictures until it has seen as many images, and tests both on things of which neither saw a picture.
# Expects built programs and what the documents are made of (`make demo-documents` does both). Everything it prints is measured in this run.
set -euo pipefail
cd "$(dirname "$0")/.."
PROGRAMS=${CARGO_TARGET_DIR:-target}/release
LCL=$PROGRAMS/lcl
HOME_DIR=.demo-documents
DATA=$HOME_DIR/data
# Seconds of training on documents the demo aims at; the number of steps is what this machine does in that time by a short probe. Training on pairs takes
# about two thirds of it.
SECONDS_DOCUMENTS=${DEMO_SECONDS:-240}
# Each number trains and tests both once more, for the spread that is due to chance.
SEEDS=${DEMO_SEEDS:-1}
HELD_OUT=$DATA/pairs/heldout-000.tar

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

run() { # NAME SEED RUNS ARGUMENTS...
  local manifest=$HOME_DIR/$1.yaml
  sed "s/^    seed: .*/    seed: $2/" "examples/$1.yaml" > "$manifest"
  rm -rf "$3"
  mkdir -p "$3"
  "$LCL" run "$manifest" --local --volume "data=$DATA" --volume "runs=$3" "${@:4}"
}

# Tests a run on the held-out pairs; results go to RUNS.
evaluate() { # NAME RUNS
  "$LCL" evaluate retrieval --run "$2/$1" --shards "$HELD_OUT" --name "$1, things it never saw" --examples 5 --output-file "$2/retrieval.json"
  "$LCL" evaluate generation --run "$2/$1" --shards "$HELD_OUT" --name "$1, things it never saw" --output-file "$2/generation.json"
}

mkdir -p "$HOME_DIR"
say "Documents of pictures and definitions"
"$PROGRAMS/examples/pack_documents" --wordnet .deps/documents/wordnet --clipart .deps/documents/clipart \
  --google .deps/emoji/google --twitter .deps/emoji/twitter --out "$DATA"
"$LCL" data stats -f examples/documents.yaml --volume "data=$DATA" --volume "runs=$HOME_DIR/runs"
"$LCL" data show -f examples/documents.yaml --volume "data=$DATA" --volume "runs=$HOME_DIR/runs" --count 24 --html "$HOME_DIR/documents.html"

run documents 1 "$HOME_DIR/probe" --steps 40 -o json > "$HOME_DIR/probe.log" 2>&1 || { cat "$HOME_DIR/probe.log" >&2; exit 1; }
STEPS=$(python3 scripts/demo_documents.py steps "$HOME_DIR/probe/documents" "$SECONDS_DOCUMENTS")
rm -rf "$HOME_DIR/probe"
for seed in $SEEDS; do
  RUNS=$HOME_DIR/runs-$seed
  say "On documents: $STEPS steps fit into $SECONDS_DOCUMENTS s on this machine"
  run documents "$seed" "$RUNS/documents" --steps "$STEPS"
  evaluate documents "$RUNS/documents"
  PAIR_STEPS=$(python3 scripts/demo_documents.py pair_steps "$RUNS/documents/documents" examples/documents-as-pairs.yaml)
  say "On the same pictures as pairs: $PAIR_STEPS steps have as many images"
  run documents-as-pairs "$seed" "$RUNS/pairs" --steps "$PAIR_STEPS"
  evaluate documents-as-pairs "$RUNS/pairs"
  "$LCL" report "$RUNS/documents/documents" --retrieval "$RUNS/documents/retrieval.json" --retrieval "$RUNS/pairs/retrieval.json" -o "$HOME_DIR/report-$seed.html"
done

say "Documents against pairs, on things of which neither saw a picture"
# shellcheck disable=SC2086 # A list of words.
python3 scripts/demo_documents.py table "$HOME_DIR" $SEEDS
say "What is there now"
echo "documents:    $HOME_DIR/documents.html"
for seed in $SEEDS; do
  echo "curves:       $HOME_DIR/report-$seed.html"
  ls -d "$HOME_DIR/runs-$seed"/*/*/step-* | sed 's/^/checkpoint:   /'
done
