#!/usr/bin/env python3
"""The training step of `lcl-torch` against plain PyTorch: both sides in turns, in one run, from the same initial weights.

    cargo build --release -p lcl-torch --example bench_step
    bench/step_compare.py [--rounds 4] [--model 61m] [--precisions float32,bfloat16]

PyTorch (`bench/step.py`) first has to agree with the recorded losses and gradients in `tests/golden`; then it runs with a C library
that is told to keep memory (environment variables), ours as it always runs. Both print the loss of every step: they must agree.
Prints a Markdown table. Needs a Python with torch 2.11.0 and safetensors; nothing but this comparison does.
"""

import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RETAINED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967295",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
}
# Steps of which the losses are compared.
COMPARED_STEPS = 7
# Largest relative difference of the losses: float32 sums in another order; bfloat16 rounds every product to 8 bits.
LOSS_TOLERANCE = {"float32": 2e-4, "bfloat16": 1e-2}


def run(command, environment=None):
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def processor():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def compare(precision, arguments, folder):
    weights = folder / "weights.safetensors"
    common = ["--model", arguments.model, "--precision", precision, "--device", arguments.device, "--threads", str(arguments.threads),
              "--warmup", "2", "--steps", str(arguments.steps), *(["--rows", str(arguments.rows)] if arguments.rows else [])]
    sides = {
        "pytorch": ([arguments.python, ROOT / "bench/step.py", *common], RETAINED),
        "lcl-torch": ([arguments.binary, *common, "--weights", weights], None),
    }
    run([*sides["pytorch"][0][:2], "--model", arguments.model, "--warmup", "0", "--steps", "1", "--save-weights", weights])
    seconds, processor, peaks, faults, losses = ({side: [] for side in sides} for _ in range(5))
    for round_number in range(arguments.rounds):
        # The order changes from round to round, so that no side always runs on the warmer machine.
        for side in sorted(sides, reverse=round_number % 2 == 1):
            result = json.loads(run(*sides[side]).splitlines()[-1])
            seconds[side].append(result["seconds"])
            processor[side] += result["processor_seconds"]
            peaks[side].append(result["peak_bytes"])
            faults[side].append(result["page_faults_per_step"])
            losses[side] = result["losses"]
            print(f"{precision} round {round_number + 1} {side}: median {statistics.median(result['seconds']):.3f} s", file=sys.stderr)
    # Later steps say less of the sides than of rounding: every update amplifies it.
    first = slice(0, COMPARED_STEPS)
    worst = max(abs(a / b - 1) for a, b in zip(losses["pytorch"][first], losses["lcl-torch"][first]))
    if worst > LOSS_TOLERANCE[precision]:
        sys.exit(f"{precision}: the losses differ by {worst:.1e}: {losses}")
    flat = {side: [second for one_run in seconds[side] for second in one_run] for side in sides}
    rows = result["rows"]
    for side in ("pytorch", "lcl-torch"):
        median = statistics.median(flat[side])
        print(f"| {precision} | {side} | {median:.3f} | {min(flat[side]):.3f} | {rows / median:.1f} | {min(processor[side]):.2f} | {max(peaks[side]) / 2**30:.2f} |"
              f" {statistics.median(faults[side]):,.0f} |")
    ratios = [f(flat["lcl-torch"]) / f(flat["pytorch"]) for f in (statistics.median, min)]
    peak = max(peaks["lcl-torch"]) / max(peaks["pytorch"])
    print(f"| {precision} | **ours / PyTorch** | **{ratios[0]:.3f}** | **{ratios[1]:.3f}** | {1 / ratios[0]:.2f} × |"
          f" {min(processor['lcl-torch']) / min(processor['pytorch']):.3f} | {peak:.2f} | |")
    print(f"{precision}: losses of both sides agree to {worst:.1e}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path(target) / "release/examples/bench_step")
    parser.add_argument("--model", default="61m", choices=["61m", "tiny", "b16"])
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, help="rows of a step; the model's own number when it is not given")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        sys.exit(f"{arguments.binary} is not there: cargo build --release -p lcl-torch --example bench_step")
    print(run([arguments.python, ROOT / "bench/step.py", "--golden", ROOT / "tests/golden"]), end="", file=sys.stderr)
    print(f"Machine: {processor()}, {os.cpu_count()} cores, {arguments.threads} threads used. Device: {arguments.device}. "
          f"Model: {arguments.model}. {arguments.rounds} rounds of {arguments.steps} steps each, in turns.\n")
    print("| precision | side | median s/step | best s/step | images/s | least processor s/step | peak GiB | page faults/step |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions.split(","):
            compare(precision, arguments, pathlib.Path(folder))


if __name__ == "__main__":
    main()
