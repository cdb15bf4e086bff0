"""What happens to the demo's workers, and what it cost.

make LCL LAUNCHER RUN STEPS   once the run has a third of STEPS, kills a worker with its member by SIGKILL; at two thirds asks for a third
                              worker, and when the three have trained for a while goes back to two. Writes what it did and saw, with the
                              times, into RUN/changes.json
report RUN                    computes the cost from the run's own files: metrics.jsonl and changes.json
"""

import json
import os
import signal
import subprocess
import sys
import time

KILLED, SURVIVOR = "emoji-w-0", "emoji-w-1"
# Steps that three workers train together before there are two again: enough to tell their speed by.
TOGETHER = 20


def steps_of(run):
    """The whole lines of metrics.jsonl."""
    try:
        text = open(f"{run}/metrics.jsonl").read()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def descendants(parent):
    found = []
    try:
        for thread in os.listdir(f"/proc/{parent}/task"):
            for child in open(f"/proc/{parent}/task/{thread}/children").read().split():
                words = open(f"/proc/{child}/cmdline").read().replace("\0", " ")
                found += [(int(child), words)] + descendants(child)
    except FileNotFoundError:
        pass  # It ended meanwhile.
    return found


def member_of(launcher, worker):
    """A worker's training process: its number and when it began, which no other process has in common with it."""
    for pid, words in descendants(launcher):
        if " member " in words and f"--worker {worker} " in words:
            # The name, which may hold anything, ends with the last bracket; the start is the 20th field after it.
            return [pid, open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[19]]
    return None


class Run:
    def __init__(self, lcl, launcher, folder):
        self.lcl, self.launcher, self.folder = lcl, launcher, folder
        self.formed = {}

    def status(self):
        """What the run says of itself. Remembers how many members each generation had."""
        done = subprocess.run([self.lcl, "status", self.folder, "-o", "json"], capture_output=True, text=True)
        if done.returncode != 0:
            return None
        status = json.loads(done.stdout)
        for event in status["history"]:
            if event["event"] == "group_formed":
                self.formed[name(event)] = event["members"]
        return status

    def resize(self, workers):
        instant = time.time()
        subprocess.run([self.lcl, "resize", self.folder, "--workers", str(workers)], check=True)
        return instant

    def wait(self, condition, pause=0.05):
        """Until the condition gives something."""
        while True:
            found = condition()
            if found:
                return found
            os.kill(self.launcher, 0)  # Ends this process when the launcher is gone.
            time.sleep(pause)

    def has_steps(self, steps):
        return lambda: len(steps_of(self.folder)) >= steps

    def trains_with(self, members, before):
        """The first step that so many did together in a generation after that of the step `before`."""

        def condition():
            new = [line for line in steps_of(self.folder)[before["step"] :] if name(line) != name(before)]
            # Asked only when it has something new to say: the answer costs a process its start.
            if any(name(line) not in self.formed for line in new):
                self.status()
            return next((line for line in new if self.formed.get(name(line)) == members), None)

        return condition

    def last_step(self):
        return steps_of(self.folder)[-1]


def name(line):
    return "g{epoch:06}-{number:06}".format(**line["group"])


def make(lcl, launcher, folder, steps):
    run, done = Run(lcl, launcher, folder), {}
    try:
        make_changes(run, steps, done)
    except (ProcessLookupError, subprocess.CalledProcessError):
        print("the run ended before all that was planned had happened", file=sys.stderr)
    done["formed"] = run.formed
    with open(f"{folder}/changes.json", "w") as file:
        json.dump(done, file, indent=1)


def make_changes(run, steps, done):
    run.wait(run.has_steps(steps // 3))
    run.status()
    victims = [pid for pid, words in descendants(run.launcher) if f"--worker {KILLED} " in words]
    before, survivor = run.last_step(), member_of(run.launcher, SURVIVOR)
    instant = time.time()
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    print(f"\n>>> kill -9: worker {KILLED} and its member, {len(victims)} processes, after {steps // 3} steps <<<\n", flush=True)
    done["kill"] = {"time": instant, "survivor": [survivor]}
    run.wait(run.trains_with(2, before), 0.5)
    done["kill"]["survivor"].append(member_of(run.launcher, SURVIVOR))

    run.wait(run.has_steps(2 * steps // 3))
    before, stay = run.last_step(), [member_of(run.launcher, worker) for worker in (KILLED, SURVIVOR)]
    print(f"\n>>> lcl resize --workers 3, after {before['step'] + 1} steps <<<", flush=True)
    done["grow"] = {"time": run.resize(3), "stayed": [stay]}
    first = run.wait(run.trains_with(3, before), 0.5)
    done["grow"]["stayed"].append([member_of(run.launcher, worker) for worker in (KILLED, SURVIVOR)])
    run.wait(run.has_steps(first["step"] + 1 + TOGETHER))
    before = run.last_step()
    print(f"\n>>> lcl resize --workers 2, after {before['step'] + 1} steps <<<", flush=True)
    done["shrink"] = {"time": run.resize(2)}
    run.wait(run.trains_with(2, before), 0.5)


def report(folder):
    done, lines = json.load(open(f"{folder}/changes.json")), steps_of(folder)
    world = lambda line: done["formed"].get(name(line))
    if "kill" in done:
        report_kill(done["kill"], lines, world)
    if "grow" in done:
        report_resize(done["grow"], lines, world, 3)
        before, after = (done["grow"]["stayed"] + [None])[:2]
        print(f"          the members that were there are {same(before, after)}")
    if "shrink" in done:
        report_resize(done["shrink"], lines, world, 2)
    check_ledger(lines)


def same(before, after):
    """Whether processes are the ones that they were, by number and start."""
    if not before or not after:
        return "not known to be the same processes: the run ended before they were looked at"
    if before != after:
        return f"NOT the same: {before}, then {after}"
    processes = after if isinstance(after[0], list) else [after]
    return f"the same, by process id and start time: {', '.join(str(process) for process, _ in processes)}"


def split(lines, instant):
    return [line for line in lines if line["time"] <= instant], [line for line in lines if line["time"] > instant]


def pace(lines):
    """Steps a second over the last of these lines, which are of one generation."""
    lines = [line for line in lines if name(line) == name(lines[-1])][-51:]
    return (len(lines) - 1) / (lines[-1]["time"] - lines[0]["time"]) if len(lines) > 1 else float("nan")


def report_kill(event, lines, world):
    before, after = split(lines, event["time"])
    after = [line for line in after if name(line) != name(before[-1])]
    print(f"killed after step {len(before)} of {len(lines)}, at {pace(before):.2f} steps/s with {world(before[-1])} workers")
    alone = next((line for line in after if world(line) == 1), None)
    together = next((line for line in after if world(line) == 2), None)
    if alone is None:
        print("  the replacement was there before the survivor had trained a step alone")
    else:
        print(f"  {alone['time'] - event['time']:7.2f} s to the survivor's next step ({alone['step'] + 1}), alone")
        print(f"          its process is {same(*(event['survivor'] + [None])[:2])}")
    if together is None:
        print("  the job ended before the replacement was in")
    elif alone is not None:
        count = sum(1 for line in after if name(line) == name(alone))
        print(f"  {together['time'] - event['time']:7.2f} s to the first step ({together['step'] + 1}) that the replacement took part in")
        print(f"          in between the survivor trained {count} steps on the whole batch")


def report_resize(event, lines, world, workers):
    before, after = split(lines, event["time"])
    first = next((line for line in after if world(line) == workers), None)
    print(f"asked for {workers} workers after step {len(before)}, at {pace(before):.2f} steps/s with {world(before[-1])}")
    if first is None:
        print(f"  the job ended before there were {workers}")
        return
    last = lines[first["step"] - 1]
    print(f"  {first['time'] - event['time']:7.2f} s to the first step ({first['step'] + 1}) of {workers}; until then the others trained on")
    print(f"  {first['time'] - last['time']:7.2f} s of it from the last step before to the end of that one, which includes the step itself")
    count = sum(1 for line in after if name(line) == name(first))
    cores = len(os.sched_getaffinity(0))
    print(f"          then {pace([line for line in after if name(line) == name(first)]):.2f} steps/s over {count} steps", end="")
    print(f": {workers} workers share {cores} processors" if workers > cores else "")


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
    print(f"ledger: {len(lines)} steps, each once, no gap; {slots} slots, none left out and none twice")


if __name__ == "__main__":
    if sys.argv[1] == "make":
        make(sys.argv[2], int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
    else:
        report(sys.argv[2])
