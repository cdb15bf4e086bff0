#!/usr/bin/env python3
"""Steps of several members, each a process: `lcl-torch` against PyTorch's DistributedDataParallel over Gloo with two, and exact mode against
fast mode with four. Both sides of a comparison in turns, in one run, from the same initial weights.

    cargo build --release -p lcl-torch --example bench_members
    bench/elastic_compare.py [--rounds 4] [--model 61m]

PyTorch (`bench/step.py`) first has to agree with the recorded losses and gradients in `tests/golden`; it runs with a C library that is told
to keep memory, fused AdamW, `scaled_dot_product_attention`, gradients as views of DDP's buckets. All sides print the loss of the whole batch
at every step: they must agree. Prints Markdown. Needs a Python with torch 2.11.0 and safetensors.
"""

import argparse
import json
import os
import pathlib
import statistics
import sys
import tempfile

from step_compare import LOSS_TOLERANCE, RETAINED, ROOT, processor, run

# What two members may take of DDP's time.
GOALS = {"tiny": "0.55", "61m": "0.65"}


def compare(title, sides, rounds, tolerance, goal):
    """Runs the sides in turns; the ratio of the first to the last one's median."""
    seconds, losses, peaks = ({side: [] for side in sides} for _ in range(3))
    for number in range(rounds):
        for side in sorted(sides, reverse=number % 2 == 1):
            command, environment = sides[side]
            result = json.loads(run(command, environment).splitlines()[-1])
            seconds[side] += result["seconds"]
            losses[side] = result["losses"]
            peaks[side].append(result["peak_bytes"])
            print(f"{title} round {number + 1} {side}: median {statistics.median(result['seconds']):.3f} s", file=sys.stderr)
    first, last = list(sides)[0], list(sides)[-1]
    worst = max(abs(a / b - 1) for a, b in zip(losses[first], losses[last]))
    if worst > tolerance:
        sys.exit(f"{title}: the losses differ by {worst:.1e}: {losses}")
    for side in sides:
        print(f"| {title} | {side} | {statistics.median(seconds[side]):.3f} | {min(seconds[side]):.3f} | {max(peaks[side]) / 2**30:.2f} |")
    ratios = [f(seconds[first]) / f(seconds[last]) for f in (statistics.median, min)]
    print(f"| {title} | **{first} / {last}** | **{ratios[0]:.3f}** (goal {goal}) | **{ratios[1]:.3f}** | {max(peaks[first]) / max(peaks[last]):.2f} |")
    print(f"{title}: losses agree to {worst:.1e}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path(target) / "release/examples/bench_members")
    parser.add_argument("--model", default="61m", choices=["61m", "tiny"])
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--rows", type=int, default=16, help="of the members of both comparisons together, for each of two")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        sys.exit(f"{arguments.binary} is not there: cargo build --release -p lcl-torch --example bench_members")
    print(run([arguments.python, ROOT / "bench/step.py", "--golden", ROOT / "tests/golden"]), end="", file=sys.stderr)
    print(f"Machine: {processor()}, {os.cpu_count()} cores, one thread a member. Model: {arguments.model}; {2 * arguments.rows} rows a step. "
          f"{arguments.rounds} rounds of {arguments.steps} steps each, in turns.\n")
    print("| comparison | side | median s/step | best s/step | peak GiB of a member |\n|---|---|---|---|---|")
    common = ["--model", arguments.model, "--threads", "1", "--warmup", "2", "--steps", str(arguments.steps)]
    with tempfile.TemporaryDirectory() as folder:
        weights = pathlib.Path(folder) / "weights.safetensors"
        run([arguments.python, ROOT / "bench/step.py", "--model", arguments.model, "--warmup", "0", "--steps", "1", "--save-weights", weights])
        common += ["--weights", weights]
        for precision in arguments.precisions.split(","):
            two = [*common, "--precision", precision, "--processes", "2", "--rows", str(arguments.rows)]
            sides = {
                "lcl-torch": ([arguments.binary, *two], None),
                "PyTorch DDP": ([arguments.python, ROOT / "bench/step.py", *two], RETAINED),
            }
            compare(f"2 members, {precision}", sides, arguments.rounds, LOSS_TOLERANCE[precision], GOALS[arguments.model])
        for precision in arguments.precisions.split(","):
            four = [*common, "--precision", precision, "--processes", "4", "--rows", str(arguments.rows // 2)]
            sides = {"exact": ([arguments.binary, *four, "--exact"], None), "fast": ([arguments.binary, *four], None)}
            compare(f"4 members, {precision}", sides, arguments.rounds, LOSS_TOLERANCE[precision], "1.05")


if __name__ == "__main__":
    main()
