#!/usr/bin/env python3
"""How long a checkpoint holds up training: the state copied at once, before the next step, and beside it, in turns.

    cargo build --release -p lcl-torch --example bench_step
    bench/stall.py [--model 61m] [--rounds 2] [--device cuda --precision bfloat16 --rows 64]

Every other step has a copy. "stands still": until the copy is done (at once), or begun and, where it has to be, waited for (beside).
"costs": a step with its copy less a step without, medians, which is what training loses. Prints Markdown.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MANNERS = ("at-once", "beside")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path(target) / "release/examples/bench_step")
    parser.add_argument("--model", default="61m")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6)
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        sys.exit(f"{arguments.binary} is not there: cargo build --release -p lcl-torch --example bench_step")
    common = [arguments.binary, "--model", arguments.model, "--precision", arguments.precision, "--device", arguments.device,
              "--threads", str(arguments.threads), "--warmup", "2", "--steps", str(arguments.steps),
              *(["--rows", str(arguments.rows)] if arguments.rows else [])]
    plain, copied, stalls = ({manner: [] for manner in MANNERS} for _ in range(3))
    losses = {}
    for number in range(arguments.rounds):
        for manner in sorted(MANNERS, reverse=number % 2 == 1):
            done = subprocess.run([*common, "--copy", manner], capture_output=True, text=True)
            if done.returncode != 0:
                sys.exit(f"{manner} failed:\n{done.stdout}{done.stderr}")
            result = json.loads(done.stdout.splitlines()[-1])
            plain[manner] += result["seconds"]
            copied[manner] += result["copied_seconds"]
            stalls[manner] += result["stall_seconds"]
            losses[manner] = result["losses"]
    if losses["beside"] != losses["at-once"]:
        sys.exit(f"the copy changes what is trained: {losses}")
    print(f"{result['copied_bytes'] / 1e6:.0f} MB ({arguments.model}, {arguments.precision}, {result['rows']} rows, {arguments.device}, "
          f"{arguments.threads} threads); {arguments.rounds} rounds in turns\n")
    print("| the copy | training stands still, s | step with the copy, s | step without, s | costs, s |\n|---|---|---|---|---|")
    spread = lambda times: f"{statistics.median(times):.3f} ({min(times):.3f}–{max(times):.3f})"
    for manner in MANNERS:
        cost = statistics.median(copied[manner]) - statistics.median(plain[manner])
        print(f"| {manner.replace('-', ' ')} | {spread(stalls[manner])} | {spread(copied[manner])} | {spread(plain[manner])} | {cost:.3f} |")


if __name__ == "__main__":
    main()
