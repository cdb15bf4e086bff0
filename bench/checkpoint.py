#!/usr/bin/env python3
"""Checkpoints: `lcl-checkpoint` against `torch.save` and `torch.load`, taking turns on the same disk.

The state is that of the 61.2 M-parameter benchmark model with both Adam moments in float32 (735 MB). Build the other half first:

    cargo build --release -p lcl-checkpoint --example bench_checkpoint
    bench/checkpoint.py [--folder FOLDER] [--rounds 5]

"training stands still": with torch.save the whole call; with lcl-checkpoint the copy into retained host memory and the hand-over. The
restore is from the page cache, right after the write; lcl-checkpoint checks every byte, torch.load none.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Ours:
    def __init__(self, binary, folder, threads):
        self.process = subprocess.Popen(
            [binary, folder, *(["--threads", str(threads)] if threads else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.shapes = json.loads(self.process.stdout.readline())

    def ask(self, command):
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"bench_checkpoint ended during `{command}`")
        return json.loads(answer)


def torch_save(state, path, sync):
    """As a careful user would: into a temporary file, renamed when it is whole."""
    start = time.perf_counter()
    with open(f"{path}.tmp", "wb") as file:
        torch.save(state, file)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    os.replace(f"{path}.tmp", path)
    return time.perf_counter() - start


def torch_load(path):
    start = time.perf_counter()
    state = torch.load(path, weights_only=True)
    seconds = time.perf_counter() - start
    assert len(state) > 100
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; default: a temporary folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="threads of the writer")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    parser.add_argument("--binary", default=str(target / "release/examples/bench_checkpoint"))
    arguments = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="bench-checkpoint-", dir=arguments.folder)
    try:
        print(report(arguments, folder))
    finally:
        shutil.rmtree(folder)


def report(arguments, folder):
    ours = Ours(arguments.binary, f"{folder}/ours", arguments.threads)
    state = {name: torch.randn(shape) for name, shape in ours.shapes.items()}
    size = sum(tensor.numel() * 4 for tensor in state.values())
    path = f"{folder}/torch.pt"
    times = {key: [] for key in ["stall", "ours", "ours synced", "ours restore", "torch", "torch synced", "torch load"]}
    for round_number in range(arguments.rounds + 1):
        results = {}
        for sync in [False, True]:
            answer = ours.ask("save" if sync else "save-unsynced")
            results["ours synced" if sync else "ours"] = answer["total"]
            results[f"stall {sync}"] = answer["stall"]
            results["torch synced" if sync else "torch"] = torch_save(state, path, sync)
        results["ours restore"] = ours.ask("restore")["restore"]
        results["torch load"] = torch_load(path)
        # The first round touches memory and disk for the first time on both sides.
        for key, value in results.items() if round_number else ():
            times[key.removesuffix(" True").removesuffix(" False")].append(value)
    show = lambda key: f"{statistics.median(times[key]):.2f} s ({min(times[key]):.2f}–{max(times[key]):.2f})"
    return "\n".join(
        [
            f"Checkpoint of {len(state)} tensors, {size / 1e6:.0f} MB; median of {arguments.rounds} rounds, taking turns (lowest–highest)",
            "",
            "| | lcl-checkpoint | torch.save / torch.load |",
            "|---|---|---|",
            f"| training stands still | {show('stall')} | {show('torch')} |",
            f"| written, not synced | {show('ours')} | {show('torch')} |",
            f"| written and on disk (fsync) | {show('ours synced')} | {show('torch synced')} |",
            f"| restored from the page cache | {show('ours restore')}, every byte checked | {show('torch load')}, unchecked |",
        ]
    )


if __name__ == "__main__":
    main()
