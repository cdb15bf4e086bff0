#!/usr/bin/env python3
"""How a group starts and heals as it grows: `lcl-trainer local` with 4, 8, 16, 32 and 64 members on this machine, phase by phase.

    cargo build --release -p lcl-trainer -p lcl-coordinator
    bench/group.py [--members 4,8,16,32,64] [--keep FOLDER]

Each job starts fresh, is stopped with a checkpoint, restores it, loses one member, then a quarter of them, and gets them back. All members
share the cores of this machine, so times grow with their number whatever is done; how often the state is sent does not. Read from the
structured log. Prints Markdown. Needs a Python with Pillow.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import recovery
from recovery import ROOT, descendants, end, formations, generation_of, lines_of, seconds_of, wait_for, write_shard

# A member's time-outs are those of a group whose members have a core each.
PATIENT = ["--heartbeat-timeout", "120", "--stall-timeout", "600"]
MEMBERS_PER_WORKER = 4


class Job:
    """A local run, read from its log."""

    def __init__(self, arguments, members, folder, name):
        self.members, self.run, self.log = members, folder / "run", folder / f"log-{name}"
        config = folder / "config.json"
        config.write_text(json.dumps(configuration(folder, self.run, members)))
        self.began = time.time()
        self.process = subprocess.Popen(
            [arguments.trainer, "--log-format", "json", "local", "--config", config, "--output", "json", *PATIENT,
             "--workers", str(max(members // MEMBERS_PER_WORKER, 1)), "--members-per-worker", str(min(members, MEMBERS_PER_WORKER))],
            stdout=subprocess.DEVNULL, stderr=open(self.log, "w"),
        )

    def said(self, message, generation):
        """The lines of members that said so in a generation."""
        found = [line for line in lines_of(self.log) if line.get("fields", {}).get("message") == message]
        return [line for line in found if line["fields"].get("group", generation) == generation]

    def group(self, members, after=0.0):
        """The newest group, if all of so many members have stood in it since then, and it has made a step."""
        whole = [name for name, formed in formations(self.log).items()
                 if len(formed) == members and max(when for when, _ in formed.values()) > after]
        steps = lines_of(self.run / "metrics.jsonl")
        made = {generation_of(step) for step in steps}
        return next((name for name in reversed(whole) if name in made), None)

    def first_step(self, generation):
        return min(step["time"] for step in lines_of(self.run / "metrics.jsonl") if generation_of(step) == generation)

    def pids(self):
        """Process of each member, by its name."""
        found = {}
        for pid, words in descendants(self.process.pid):
            if len(words) > 1 and "member" in words and "--worker" in words:
                found[f"{words[words.index('--worker') + 1]}/{words[words.index('--index') + 1] if '--index' in words else 0}"] = pid
        return found


def configuration(folder, run, members):
    shaped = recovery.configuration(folder / "data.tar", run, max(members, 32))
    small = {"width": 64, "layers": 2, "heads": 2}
    for tower in ("vision", "text"):
        shaped["model"]["shape"][tower].update(small)
    shaped["model"]["shape"]["embedDim"] = 64
    return shaped


def resident(pids):
    """Mean memory of a process in MiB: what is its own, with its part of what it shares."""
    sizes = []
    for pid in pids:
        try:
            text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        sizes.append(int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) / 1024)
    return statistics.mean(sizes) if sizes else 0.0


def phases(job, generation, begin):
    """Seconds from `begin` until a group stood, its members held one state, and its first step was done; and how the state travelled."""
    formed = max(when for when, _ in formations(job.log)[generation].values())
    level = job.said("state is level", generation)
    # Of the two halves of a state.
    sent = [len(re.findall(r"\d+", line["fields"]["to"])) for line in level]
    return {
        "group": formed - begin, "level": max(map(seconds_of, level)) - formed if level else 0.0,
        "step": job.first_step(generation) - begin, "receivers": sum(sent) // 2, "most sent": max(sent, default=0) / 2,
        "chain": max((line["fields"]["depth"] for line in level), default=0),
    }


def lose(job, count):
    """Kills so many members at once; how the others went on, and how the group was whole again."""
    names = sorted(job.pids().items())[-count:]
    instant = time.time()
    for _, pid in names:
        os.kill(pid, signal.SIGKILL)
    whole = wait_for("all members again", lambda: job.group(job.members, instant), job.process)
    groups = sorted((max(when for when, _ in formed.values()), name) for name, formed in formations(job.log).items()
                    if len(formed) == job.members - count)
    later = [name for when, name in groups if when > instant and name in {generation_of(step) for step in lines_of(job.run / "metrics.jsonl")}]
    found = {"healed": phases(job, whole, instant)}
    if later:
        found["survivors"] = phases(job, later[0], instant)
    return found


def measure(arguments, members, folder):
    rows, job = {}, Job(arguments, members, folder, "fresh")
    try:
        rows["fresh start"] = phases(job, wait_for("the first step", lambda: job.group(members), job.process), job.began)
        memory = resident(job.pids().values())
    finally:
        end(job.process)
    job = Job(arguments, members, folder, "restored")
    try:
        rows["from a checkpoint"] = phases(job, wait_for("a step", lambda: job.group(members, job.began), job.process), job.began)
        for count in (1, members // 4):
            for what, row in lose(job, count).items():
                rows[f"{count} lost, {what}"] = row
    finally:
        end(job.process)
    return rows, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
    parser.add_argument("--trainer", type=pathlib.Path, default=pathlib.Path(target) / "release/lcl-trainer")
    parser.add_argument("--members", default="4,8,16,32,64")
    parser.add_argument("--keep", type=pathlib.Path, help="where logs are kept")
    arguments = parser.parse_args()
    if not arguments.trainer.exists():
        sys.exit(f"{arguments.trainer} is not there: cargo build --release -p lcl-trainer -p lcl-coordinator")
    recovery.PATIENCE = 900.0
    print(f"{os.cpu_count()} cores for all members. Seconds: until the group stands, then until all hold one state, and from the beginning "
          "to the first step.\n")
    print("| members | what | group | level | first step | receive the state | sent by one, at most | longest chain | MiB a member |")
    print("|---|---|---|---|---|---|---|---|---|")
    for members in map(int, arguments.members.split(",")):
        with tempfile.TemporaryDirectory(dir=arguments.keep) as folder:
            folder = pathlib.Path(folder)
            write_shard(folder / "data.tar")
            rows, memory = measure(arguments, members, folder)
            if arguments.keep:
                os.rename(folder, arguments.keep / f"{members}-{int(time.time())}")
                folder.mkdir()
        for what, row in rows.items():
            print(f"| {members} | {what} | {row['group']:.2f} | {row['level']:.2f} | {row['step']:.2f} | {row['receivers']} | "
                  f"{row['most sent']:g} | {row['chain']} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
