"""The demo's accident and what it cost.

kill LAUNCHER WORKER RUN STEP   waits until the run has STEP steps, kills that worker of the launcher and its members with SIGKILL, and
                                writes the time into RUN/kill.json
report RUN LOG                  computes the cost from the run's own files: metrics.jsonl and the log of the launcher
"""

import json
import os
import re
import signal
import sys
import time
from datetime import datetime


def steps_of(run):
    """The whole lines of metrics.jsonl."""
    try:
        text = open(f"{run}/metrics.jsonl").read()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def descendants(parent):
    found = []
    for thread in os.listdir(f"/proc/{parent}/task"):
        for child in open(f"/proc/{parent}/task/{thread}/children").read().split():
            words = open(f"/proc/{child}/cmdline").read().replace("\0", " ")
            found += [(int(child), words)] + descendants(child)
    return found


def kill(launcher, worker, run, step):
    while len(steps_of(run)) < step:
        os.kill(launcher, 0)  # Ends this process when the launcher is gone.
        time.sleep(0.05)
    victims = [pid for pid, words in descendants(launcher) if f"--worker {worker} " in words]
    instant = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    with open(f"{run}/kill.json", "w") as file:
        json.dump({"time": instant, "worker": worker, "processes": len(victims)}, file)
    print(f"\n>>> kill -9: worker {worker} and its member, {len(victims)} processes, after {step} steps <<<\n", flush=True)


def report(run, log):
    event = json.load(open(f"{run}/kill.json"))
    lines = steps_of(run)
    formed = r"^(\S+Z)\s+INFO formed generation=(g\d+-\d+) world=(\d+)"
    worlds = {name: int(world) for _, name, world in re.findall(formed, open(log).read(), re.M)}
    name = lambda line: "g{epoch:06}-{n:06}".format(**line["generation"])
    before = [line for line in lines if line["time"] <= event["time"]]
    after = [line for line in lines if line["time"] > event["time"] and name(line) != name(before[-1])]
    alone = next(line for line in after if worlds[name(line)] < worlds[name(before[-1])])
    together = next((line for line in after if worlds[name(line)] >= worlds[name(before[-1])]), None)
    pace = (before[-1]["time"] - before[-51]["time"]) / 50
    print(f"killed after step {len(before)} of {len(lines)}, at {1 / pace:.2f} steps/s with {worlds[name(before[-1])]} workers")
    print(f"  {alone['time'] - event['time']:7.2f} s to the survivor's next step ({alone['step'] + 1}), alone; it is the same process")
    if together is None:
        print("  the job ended before the replacement was in")
    else:
        count = sum(1 for line in after if name(line) == name(alone))
        print(f"  {together['time'] - event['time']:7.2f} s to the first step ({together['step'] + 1}) that the replacement took part in")
        print(f"          in between the survivor trained {count} steps on the whole batch")
    check_ledger(lines)


def check_ledger(lines):
    """Every step once, in order, and every slot of its batch once."""
    wrong = [line["step"] for number, line in enumerate(lines) if line["step"] != number]
    slots = 0
    for line in lines:
        end = 0
        for part in line["slots"]:
            if part["first"] != end:
                wrong.append(line["step"])
            end = part["end"]
        slots += end
    if wrong or slots % len(lines):
        sys.exit(f"  the ledger is wrong at steps {wrong}")
    print(f"  ledger: {len(lines)} steps, each once, no gap; {slots} slots, none left out and none twice")


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill(int(sys.argv[2]), sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        report(sys.argv[2], sys.argv[3])
