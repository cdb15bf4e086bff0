#!/usr/bin/env python3
"""Where the time of a step goes, by kernel, from traces of Chrome's format: `step.py --trace` and `bench_step --trace` write two steps.

    kernels.py [--top 12] NAME=TRACE.json...

On a GPU kernels and copies are summed by name; without one, operators by the time that they do not spend in others. Prints Markdown.
"""

import argparse
import collections
import json

STEPS = 2
ON_DEVICE = {"kernel", "gpu_memcpy", "gpu_memset"}


def own_times(events):
    """Seconds and calls by name of nested intervals, each without those inside it."""
    sums = collections.defaultdict(lambda: [0.0, 0])
    threads = collections.defaultdict(list)
    for event in events:
        threads[event.get("pid"), event.get("tid")].append(event)
    for own in threads.values():
        open_events = []
        # An outer one begins no later and ends no earlier.
        for event in sorted(own, key=lambda event: (event["ts"], -event["dur"])):
            while open_events and open_events[-1]["ts"] + open_events[-1]["dur"] <= event["ts"]:
                open_events.pop()
            if open_events:
                sums[open_events[-1]["name"]][0] -= event["dur"] / 1e6
            sums[event["name"]][0] += event["dur"] / 1e6
            sums[event["name"]][1] += 1
            open_events.append(event)
    return sums


def summed(trace):
    """What was summed, and seconds and calls by name."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and "dur" in event]
    on_device = [event for event in events if event.get("cat") in ON_DEVICE]
    if not on_device:
        return "operators", own_times([event for event in events if event.get("cat") == "cpu_op"])
    sums = collections.defaultdict(lambda: [0.0, 0])
    for event in on_device:
        sums[event["name"]][0] += event["dur"] / 1e6
        sums[event["name"]][1] += 1
    return "kernels", sums


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", nargs="+", metavar="NAME=TRACE.json")
    parser.add_argument("--top", type=int, default=12)
    arguments = parser.parse_args()
    for number, given in enumerate(arguments.traces):
        name, path = given.split("=", 1)
        with open(path, encoding="utf-8") as file:
            what, sums = summed(json.load(file))
        total = sum(seconds for seconds, _ in sums.values())
        if not total:
            raise SystemExit(f"{path}: the trace holds neither kernels nor operators")
        print("\n" * bool(number) + f"{name}: {len(sums)} {what}, {1e3 * total / STEPS:.2f} ms a step\n")
        print(f"| {what[:-1]} | ms/step | share | calls/step |\n|---|---|---|---|")
        ordered = sorted(sums.items(), key=lambda item: -item[1][0])
        for kernel, (seconds, calls) in ordered[: arguments.top]:
            print(f"| `{kernel[:100].replace('|', '¦')}` | {1e3 * seconds / STEPS:.2f} | {seconds / total:.1%} | {calls / STEPS:g} |")
        rest = ordered[arguments.top :]
        if rest:
            seconds = sum(seconds for _, (seconds, _) in rest)
            print(f"| {len(rest)} others | {1e3 * seconds / STEPS:.2f} | {seconds / total:.1%} | {sum(calls for _, (_, calls) in rest) / STEPS:g} |")


if __name__ == "__main__":
    main()
