#!/usr/bin/env python3
"""What the loss of a member costs: `lcl-trainer local` and PyTorch's elastic launcher (`torchrun`), in turns, on this machine.

    cargo build --release -p lcl-trainer -p lcl-coordinator
    bench/recovery.py [--rounds 5] [--members 2,4,8]

Both train a model of the `tiny` preset's size on all members and lose one after the other to SIGKILL. Ours is read from its structured log
and its ledger; of torchrun (`bench/recovery_torchrun.py`: restarts from its own checkpoint, of every tenth step; the agent looks every
100 ms) every step is written down by its members. Prints Markdown. Needs a Python with torch 2.11.0 and Pillow.
"""

import argparse
import collections
import io
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import datetime

ROOT = pathlib.Path(__file__).resolve().parent.parent
SAMPLES, SIDE = 512, 64
# Steps of all members together before each loss.
QUIET_STEPS = 12
PATIENCE = 240.0
# torchrun's agent lends its members one store for all restarts, in which they find the addresses of those before them: with Gloo most
# restarts fail. Without it each restart has a store of its own, and the first one trains.
TORCHRUN = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def write_shard(path):
    """Drawn pairs: the time of a step does not depend on what is to be seen."""
    from PIL import Image

    with tarfile.open(path, "w") as shard:
        for index in range(SAMPLES):
            image = io.BytesIO()
            Image.new("RGB", (SIDE, SIDE), (index * 37 % 256, index * 91 % 256, index * 53 % 256)).save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("txt", f"a plain square, number {index}".encode())):
                entry = tarfile.TarInfo(f"sample{index:05}.{suffix}")
                entry.size = len(content)
                shard.addfile(entry, io.BytesIO(content))


def configuration(shard, folder, batch, exact=None):
    tower = {"width": 128, "layers": 4, "heads": 4}
    return {
        "version": 1,
        "job": "recovery",
        "model": {
            "shape": {
                "vision": {"imageSize": 64, "patchSize": 16, **tower},
                "text": {**tower, "contextLength": 64, "vocabSize": 49411},
                "embedDim": 128,
                "poolHeads": 4,
                "specialTokens": {
                    "startOfText": 49406, "endOfText": 49407, "imagePlaceholder": 49408, "startOfImage": 49409, "endOfImage": 49410,
                },
            },
            "objective": {"kind": "lcl", "generationWeight": 1.0, "contrastiveWeight": 0.1},
            "dropPath": 0.0, "layerScale": None, "activationCheckpointing": False, "precision": "float32",
        },
        "data": {
            "source": {"kind": "webdataset", "shards": [str(shard)]}, "indexPath": None, "imageFirstProbability": 0.5,
            "augmentation": {"scale": [0.9, 1.0], "ratio": [0.75, 4 / 3]}, "reducedScaleDecoding": False, "threads": 1, "prefetch": 2,
        },
        "optimization": {
            "steps": 1_000_000, "globalBatchSize": batch, "microBatchSize": None, "learningRate": 1e-3, "weightDecay": 0.1,
            "betas": [0.9, 0.98], "epsilon": 1e-6, "schedule": {"kind": "constant", "warmupSteps": 4}, "gradientClip": 1.0,
            "normalization": "global", "gradientCompression": "none", "exact": exact, "seed": 1, "maxConsecutiveSkippedSteps": 3,
        },
        "checkpoint": {"uri": folder.as_uri(), "everySteps": 100_000, "keepLast": 1, "keepEverySteps": None},
        "runtime": {"device": "cpu", "threads": 1},
    }


def lines_of(path):
    """The whole lines of a file of JSON objects."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    found = []
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            pass
    return found


class NotInTime(Exception):
    """What was waited for did not come."""


def wait_for(what, condition, process):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        if process.poll() is not None:
            raise NotInTime(f"the process ended with {process.returncode} while waiting for {what}")
        time.sleep(0.01)
    raise NotInTime(f"waited {PATIENCE:.0f} s for {what}")


def descendants(parent):
    found = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            for child in open(f"/proc/{parent}/task/{thread}/children").read().split():
                words = open(f"/proc/{child}/cmdline").read().split("\0")
                found += [(int(child), words)] + descendants(child)
    except OSError:
        pass
    return found


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Samples(collections.defaultdict):
    """Named lists of seconds."""

    def __init__(self):
        super().__init__(list)


# ---------------------------------------------------------------------------------------------------------------------- ours


def seconds_of(line):
    return datetime.fromisoformat(line["timestamp"].replace("Z", "+00:00")).timestamp()


def lose_ours(arguments, members, samples, folder):
    """A job that loses as many members as it has, at most four, each once."""
    run, log = folder / "run", folder / "log"
    config = folder / "config.json"
    config.write_text(json.dumps(configuration(folder / "data.tar", run, arguments.batch)))
    with open(log, "w") as file:
        job = subprocess.Popen(
            [arguments.trainer, "--log-format", "json", "local", "--config", config, "--workers", str(members), "--output", "json"],
            stdout=subprocess.DEVNULL, stderr=file,
        )
    try:
        for victim in range(min(members, 4)):
            lose_one_of_ours(job, run, log, members, f"recovery-w-{victim}", samples)
    finally:
        end(job)


def formations(log):
    """Generation -> when its group stood on each member, and how many members it has."""
    found = collections.defaultdict(dict)
    for line in lines_of(log):
        if line.get("fields", {}).get("message") == "group formed":
            found[line["fields"]["group"]][line["member"]] = (seconds_of(line), line["fields"]["world"])
    return found


def generation_of(step):
    return "g{epoch:06}-{number:06}".format(**step["group"])


def steps_together(run, log, members):
    """The newest steps if all of them were made by all members, else nothing."""
    whole = {name for name, all_members in formations(log).items() if len(all_members) == members}
    newest = lines_of(run / "metrics.jsonl")[-QUIET_STEPS:]
    return newest if len(newest) == QUIET_STEPS and all(generation_of(step) in whole for step in newest) else None


def lose_one_of_ours(job, run, log, members, worker, samples):
    before = wait_for("steps of all members", lambda: steps_together(run, log, members), job)
    victim = next(pid for pid, words in descendants(job.pid) if "member" in words and worker in words)
    instant = time.time()
    os.kill(victim, signal.SIGKILL)
    wait_for("steps of all members again", lambda: (found := steps_together(run, log, members)) and found[0]["time"] > instant, job)

    lines = [line for line in lines_of(log) if "timestamp" in line and seconds_of(line) > instant]
    survivors = [line for line in lines if not line.get("member", "").startswith(worker)]
    said = lambda message: [seconds_of(line) for line in survivors if line["fields"].get("message") == message]
    broken = generation_of(before[-1])
    noticed = [seconds_of(line) for line in survivors
               if line["fields"].get("message") in ("the group failed", "leaving the group") and line["fields"]["group"] == broken]
    closed = [seconds_of(line) for line in survivors
              if line["fields"].get("message") == "group closed" and line["fields"]["group"] == broken]
    groups = sorted((min(when for when, _ in group.values()), name) for name, group in formations(log).items())
    first = next(name for when, name in groups if when > instant)
    formed = max(when for when, _ in formations(log)[first].values())
    steps = [step for step in lines_of(run / "metrics.jsonl") if step["time"] > instant]
    alone = next(step for step in steps if generation_of(step) != broken)
    pace = [right["time"] - left["time"] for left, right in zip(before, before[1:])]
    samples["a step of all members"] += pace
    if noticed and closed:
        samples["loss to noticed by the first"].append(min(noticed) - instant)
        samples["noticed to group dropped by all"].append(max(closed) - min(noticed))
        samples["dropped to group re-formed"].append(formed - max(closed))
    samples["loss to group re-formed"].append(formed - instant)
    samples["loss to next step"].append(alone["time"] - instant)
    ours = [step for step in steps if generation_of(step) == generation_of(alone)]
    samples["a step of the survivors"] += [right["time"] - left["time"] for left, right in zip(ours, ours[1:])]
    received = [line for line in lines if line.get("member", "").startswith(worker) and line["fields"].get("message") == "state is level"
                and line["fields"]["from"] != "[]"]
    samples["state to the replacement"] += [line["fields"]["seconds"] for line in received]
    # From the last step without the replacement to the first with it, a step of theirs left out.
    together = next((index for index, step in enumerate(steps) if index and len(formations(log)[generation_of(step)]) == members
                     and generation_of(step) != generation_of(steps[index - 1])), None)
    if together:
        gap = steps[together]["time"] - steps[together - 1]["time"]
        samples["survivors stand still for the replacement"].append(max(0.0, gap - statistics.median(pace)))
        samples["loss to the first step of all members"].append(steps[together]["time"] - instant)
    assert said("group closed"), "the log has no line of a group's end"


# ------------------------------------------------------------------------------------------------------------------- PyTorch


def lose_theirs(arguments, members, samples, folder):
    steps = folder / "steps"
    steps.mkdir()
    job = subprocess.Popen(
        [arguments.python, "-m", "torch.distributed.run", "--standalone", "--nnodes", "1", "--nproc-per-node", str(members),
         "--max-restarts", "100", "--monitor-interval", "0.1", ROOT / "bench/recovery_torchrun.py", "--folder", folder,
         "--batch", str(arguments.batch)],
        stdout=subprocess.DEVNULL, stderr=open(folder / "log", "w"), env={**os.environ, **TORCHRUN},
    )
    try:
        restart = 0
        for victim in range(min(members, 4)):
            restart = lose_one_of_theirs(job, steps, members, restart, victim, samples)
    finally:
        end(job)


def lose_one_of_theirs(job, steps, members, restart, rank, samples):
    """Kills a rank of the incarnation of this number, and gives the number of the next one that trains."""
    everything = lambda: [line for path in steps.iterdir() for line in lines_of(path)]
    of = lambda number, event: [line for line in everything() if line["restart"] == number and line["event"] == event]
    wait_for("steps of torchrun", lambda: len(of(restart, "step")) >= QUIET_STEPS * members, job)
    own = sorted((line["step"], line["time"]) for line in of(restart, "step") if line["rank"] == 0)
    samples["a step of all members"] += [right[1] - left[1] for left, right in zip(own, own[1:])][2:]
    victim = next(line["process"] for line in of(restart, "step") if line["rank"] == rank)
    instant = time.time()
    os.kill(victim, signal.SIGKILL)
    later = lambda: [line for line in everything() if line["restart"] > restart and line["event"] == "step"]
    following = min(line["restart"] for line in wait_for("torchrun's next step", later, job))
    samples["restarts until one trains"].append(following - restart)
    samples["loss to group re-formed"].append(max(line["time"] for line in of(following, "formed")) - instant)
    samples["loss to next step"].append(min(line["time"] for line in of(following, "step")) - instant)
    last = max(line["step"] for line in of(restart, "step"))
    samples["steps done again"].append(last + 1 - min(line["step"] for line in of(following, "step")))
    return following


# ---------------------------------------------------------------------------------------------------------------------------


def percentile(values, part):
    """Of few values the 99th percentile is the greatest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def tell(members, sides):
    for side, samples in sides.items():
        for name, values in samples.items():
            if name == "rounds that did not go on":
                print(f"| {members} | {side} | {name} | | | {len(values)} |")
                continue
            unit = 1 if name in ("steps done again", "restarts until one trains") else 1000
            middle, high = statistics.median(values) * unit, percentile(values, 0.99) * unit
            print(f"| {members} | {side} | {name} | {middle:.0f} | {high:.0f} | {len(values)} |")


def judge(members, samples):
    """The goals, for four members."""
    if members != 4 or not samples:
        return
    formed, following = samples["loss to group re-formed"], samples["loss to next step"]
    step = statistics.median(samples["a step of the survivors"])
    limit = 0.2 + 1.2 * step
    print(f"4 members: re-formed p50 {statistics.median(formed):.3f} s (goal 0.200), next step p50 {statistics.median(following):.3f} s "
          f"(goal {limit:.3f}), p99 {percentile(following, 0.99):.3f} s (goal 1)", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--trainer", type=pathlib.Path, default=pathlib.Path(target) / "release/lcl-trainer")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", default="2,4,8")
    parser.add_argument("--sides", default="lcl,torchrun", help="which of the two")
    parser.add_argument("--batch", type=int, default=32)
    arguments = parser.parse_args()
    if not arguments.trainer.exists():
        sys.exit(f"{arguments.trainer} is not there: cargo build --release -p lcl-trainer -p lcl-coordinator")
    print(f"{os.cpu_count()} cores; model of the tiny preset's size, {arguments.batch} samples a step, one thread a member; "
          f"{arguments.rounds} rounds of up to four losses each, in turns. Milliseconds.\n")
    print("| members | side | what | p50 | p99, of fewer than 100 the greatest | n |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        shard = pathlib.Path(scratch) / "data.tar"
        write_shard(shard)
        for members in map(int, arguments.members.split(",")):
            sides = {side: Samples() for side in arguments.sides.split(",")}
            lose = {"lcl": lose_ours, "torchrun": lose_theirs}
            for number in range(arguments.rounds):
                for side in sorted(sides, reverse=number % 2 == 1):
                    with tempfile.TemporaryDirectory(dir=scratch) as folder:
                        folder = pathlib.Path(folder)
                        os.link(shard, folder / "data.tar")
                        try:
                            lose[side](arguments, members, sides[side], folder)
                        except NotInTime as reason:
                            if side == "lcl":
                                sys.exit(f"{members} members, round {number + 1}: {reason}")
                            # Said in the table: it is what its users would meet, too.
                            sides[side]["rounds that did not go on"].append(1)
                            print(f"{members} members, round {number + 1}, {side}: {reason}", file=sys.stderr)
                            continue
                    print(f"{members} members, round {number + 1}, {side}: next step after "
                          f"{sides[side]['loss to next step'][-1]:.3f} s", file=sys.stderr)
            tell(members, sides)
            judge(members, sides.get("lcl"))


if __name__ == "__main__":
    main()
