#!/usr/bin/env bash
# The demo: trains the job of examples/emoji.yaml on real images for at most five minutes, with two workers of which one is killed on the
# way, and a third that is added later; and shows what that cost and what the model learnt.
# Expects built programs and fetched images (`make demo` does both). Everything it prints is measured in this run.
set -euo pipefail
cd "$(dirname "$0")/.."
PROGRAMS=${CARGO_TARGET_DIR:-target}/release
LCL=$PROGRAMS/lcl
HOME_DIR=.demo
EMOJI=.deps/emoji
MANIFEST=examples/emoji.yaml
# Seconds of training the demo aims at; the number of steps is what this machine does in that time by a short probe, with room
# for a slower machine later on: at most five minutes are promised.
SECONDS_FULL=${DEMO_SECONDS:-260}
SECONDS_UNSEEN=${DEMO_UNSEEN_SECONDS:-100}

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# Steps that fit into the seconds given: measured by a short run of the same job, whose checkpoints are thrown away.
steps_within() { # SECONDS DATA
  local probe=$HOME_DIR/probe
  rm -rf "$probe"
  mkdir -p "$probe"
  "$LCL" run "$MANIFEST" --local --steps 40 --volume "data=$2" --volume "runs=$probe" -o json > "$probe/log" 2>&1 || { cat "$probe/log" >&2; return 1; }
  # The first steps warm caches up; the rest say how long one takes.
  python3 - "$probe/emoji/metrics.jsonl" "$1" <<'PY'
import json, statistics, sys
times = [json.loads(line)["time"] for line in open(sys.argv[1])]
warm = times[10:]
print(max(60, int(float(sys.argv[2]) * (len(warm) - 1) / (warm[-1] - warm[0]))))
PY
  rm -rf "$probe"
}

# Trains; on the way one of the two workers is killed with its member, and later a third one is added for a while.
train() { # STEPS DATA RUNS CHANGES
  local arguments=(run "$MANIFEST" --local --steps "$1" --volume "data=$2" --volume "runs=$3")
  if [ "$4" != yes ]; then
    "$LCL" "${arguments[@]}"
    return
  fi
  "$LCL" "${arguments[@]}" > >(tee "$3/log") 2>&1 &
  local launcher=$!
  python3 scripts/demo_changes.py make "$LCL" $launcher "$3/emoji" "$1" &
  wait $launcher
  wait $!
  say "What the loss of a worker and one more cost"
  python3 scripts/demo_changes.py report "$3/emoji"
}

train_and_test() { # TITLE DATA RUNS SECONDS NAME CHANGES
  say "$1"
  local steps
  steps=$(steps_within "$4" "$2")
  echo "$steps steps fit into $4 s on this machine"
  rm -rf "$3"
  mkdir -p "$3"
  train "$steps" "$2" "$3" "${6:-no}"
  "$LCL" evaluate retrieval --run "$3/emoji" --shards "$2/emoji/heldout-000.tar" --name "$5" --examples 5 --output-file "$3/retrieval.json"
}

# Whole folders anew: an index beside a shard of an earlier demo would only be reported as stale.
rm -rf "$HOME_DIR/seen-style" "$HOME_DIR/unseen"
mkdir -p "$HOME_DIR"
"$PROGRAMS/examples/pack_emoji" --google $EMOJI/google --twitter $EMOJI/twitter --out $HOME_DIR/seen-style/emoji
"$PROGRAMS/examples/pack_emoji" --google $EMOJI/google --twitter $EMOJI/twitter --out $HOME_DIR/unseen/emoji --hold-out both

train_and_test "One style of every tenth emoji held out" $HOME_DIR/seen-style $HOME_DIR/runs "$SECONDS_FULL" "Twitter style held out" yes
train_and_test "The same with both styles held out: emoji the model never saw" $HOME_DIR/unseen $HOME_DIR/runs-unseen "$SECONDS_UNSEEN" "both styles held out"

"$LCL" report "$HOME_DIR/runs/emoji" --retrieval "$HOME_DIR/runs/retrieval.json" --retrieval "$HOME_DIR/runs-unseen/retrieval.json" -o "$HOME_DIR/report.html"
say "What is there now"
echo "checkpoints:  $HOME_DIR/runs/emoji"
ls -d $HOME_DIR/runs/emoji/step-* | sed 's/^/  /'
echo "curves:       $HOME_DIR/report.html"
if command -v chromium > /dev/null; then
  # For a page that shows it.
  scripts/picture.sh "$HOME_DIR/report.html" "$HOME_DIR/report.png"
  echo "as a picture: $HOME_DIR/report.png"
fi
echo "TensorBoard:  tensorboard --logdir $HOME_DIR/runs/emoji"
