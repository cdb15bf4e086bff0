#!/usr/bin/env python3
"""The training step of `lcl-torch` against plain PyTorch: both sides in turns, in one run, from the same initial weights.

    cargo build --release -p lcl-torch --example bench_step
    bench/step_compare.py [--rounds 4] [--model 61m] [--precisions float32,bfloat16] [--compiled] [--device cuda]

PyTorch (`bench/step.py`) first has to agree with the recorded losses and gradients in `tests/golden`; then it runs with a C library
that is told to keep memory (environment variables), ours as it always runs. Both print the loss of every step: they must agree.
With --compiled a third side is PyTorch's step with forward, backward and update compiled by
torch.compile. On a GPU of known peak the table has the model FLOP/s utilization (`bench/flops.py`). --only-ours leaves PyTorch out, where
there is none. Prints a Markdown table. Needs a Python with torch 2.11.0 and safetensors; nothing but this comparison does.
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

import flops

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


def utilization(arguments, rows, seconds):
    """MFU of a step; None where the peak is not known."""
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else None
    if peak is None and arguments.device == "cuda":
        name = run(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]).splitlines()[0]
        peak = flops.peak_of(name)
    return peak and flops.step_flops(flops.SHAPES[arguments.model], rows) / seconds / peak


def percent(share):
    return "–" if share is None else f"{share:.1%}"


def compare(precision, arguments, folder):
    weights = folder / "weights.safetensors"
    common = ["--model", arguments.model, "--precision", precision, "--device", arguments.device, "--threads", str(arguments.threads),
              "--warmup", "2", "--steps", str(arguments.steps), *(["--rows", str(arguments.rows)] if arguments.rows else [])]
    sides = {"lcl-torch": ([arguments.binary, *common], None)}
    if not arguments.only_ours:
        script = [arguments.python, ROOT / "bench/step.py"]
        run([*script, "--model", arguments.model, "--warmup", "0", "--steps", "0", "--save-weights", weights])
        sides = {"pytorch": ([*script, *common, "--weights", weights], RETAINED)}
        if arguments.compiled:
            sides["pytorch, compiled"] = ([*script, *common, "--weights", weights, "--compile"], RETAINED)
        sides["lcl-torch"] = ([arguments.binary, *common, "--weights", weights], None)
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
    ours = "lcl-torch"
    others = [side for side in sides if side != ours]
    for other in others:
        worst = max(abs(a / b - 1) for a, b in zip(losses[other][first], losses[ours][first]))
        if worst > LOSS_TOLERANCE[precision]:
            sys.exit(f"{precision}: the losses of {other} differ by {worst:.1e}: {losses}")
        print(f"{precision}: losses agree with those of {other} to {worst:.1e}", file=sys.stderr)
    flat = {side: [second for one_run in seconds[side] for second in one_run] for side in sides}
    rows = result["rows"]
    for side in sides:
        median = statistics.median(flat[side])
        print(f"| {precision} | {side} | {median:.3f} | {min(flat[side]):.3f} | {rows / median:.1f} | {percent(utilization(arguments, rows, median))} |"
              f" {min(processor[side]):.2f} | {max(peaks[side]) / 2**30:.2f} | {statistics.median(faults[side]):,.0f} |")
    for other in others:
        ratios = [f(flat[ours]) / f(flat[other]) for f in (statistics.median, min)]
        peak = max(peaks[ours]) / max(peaks[other])
        print(f"| {precision} | **ours / {other}** | **{ratios[0]:.3f}** | **{ratios[1]:.3f}** | {1 / ratios[0]:.2f} × | |"
              f" {min(processor[ours]) / min(processor[other]):.3f} | {peak:.2f} | |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--binary", type=pathlib.Path, default=pathlib.Path(target) / "release/examples/bench_step")
    parser.add_argument("--model", default="61m", choices=list(flops.SHAPES))
    parser.add_argument("--precisions", default="float32,bfloat16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, help="rows of a step; the model's own number when it is not given")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="beside PyTorch's eager step the compiled one")
    parser.add_argument("--only-ours", action="store_true", help="without PyTorch")
    parser.add_argument("--peak-tflops", type=float, help="of the device, dense bfloat16; known for H100, H200 and A100")
    arguments = parser.parse_args()
    if not arguments.binary.exists():
        sys.exit(f"{arguments.binary} is not there: cargo build --release -p lcl-torch --example bench_step")
    if not arguments.only_ours:
        print(run([arguments.python, ROOT / "bench/step.py", "--golden", ROOT / "tests/golden"]), end="", file=sys.stderr)
    print(f"Machine: {processor()}, {os.cpu_count()} cores, {arguments.threads} threads used. Device: {arguments.device}. "
          f"Model: {arguments.model}. {arguments.rounds} rounds of {arguments.steps} steps each, in turns.\n")
    print("| precision | side | median s/step | best s/step | images/s | MFU | least processor s/step | peak GiB | page faults/step |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for precision in arguments.precisions.split(","):
            compare(precision, arguments, pathlib.Path(folder))


if __name__ == "__main__":
    main()
