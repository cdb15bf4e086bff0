"""What the demo with documents computes from its runs' own files.

steps RUN SECONDS          how many steps like those of a short run fit into SECONDS
pair_steps RUN MANIFEST    how many steps of the batch of MANIFEST have as many images as the run has seen
table FOLDER SEED...       both runs of each seed side by side, out of FOLDER/runs-SEED
"""

import json
import re
import statistics
import sys


def steps_of(run):
    return [json.loads(line) for line in open(f"{run}/metrics.jsonl")]


def steps(run, seconds):
    # The first steps warm caches up; the rest say how long one takes.
    warm = [line["time"] for line in steps_of(run)][6:]
    print(max(60, int(float(seconds) * (len(warm) - 1) / (warm[-1] - warm[0]))))


def images_of(run):
    return sum(line["images"] for line in steps_of(run))


def pair_steps(run, manifest):
    batch = int(re.search(r"globalBatchSize: (\d+)", open(manifest).read()).group(1))
    print(-(-images_of(run) // batch))


def measured(folder, name, job):
    """The figures of a run, by their names in the table."""
    lines = steps_of(f"{folder}/{name}/{job}")
    retrieval = json.load(open(f"{folder}/{name}/retrieval.json"))
    generation = json.load(open(f"{folder}/{name}/generation.json"))
    figures = {
        "steps": len(lines),
        "images seen": sum(line["images"] for line in lines),
        "tokens seen": sum(line["tokens"] for line in lines),
        "seconds of training": lines[-1]["time"] - lines[0]["time"],
    }
    for direction, words in [("image_to_text", "image → text"), ("text_to_image", "text → image")]:
        for recall in retrieval[direction]["recalls"]:
            figures[f"{words} @{recall['k']} (chance {100 * recall['chance']:.1f} %)"] = 100 * recall["recall"]
    figures["loss per token after its image"] = generation["own_image"]
    figures["loss per token after another image"] = generation["other_image"]
    return figures


def shown(name, values):
    """The mean, and the range where there are several."""
    digits = 3 if name.startswith("loss") else 1 if "@" in name else 0
    unit = " %" if "@" in name else ""
    text = f"{statistics.mean(values):,.{digits}f}{unit}"
    return text if len(values) == 1 else f"{text} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def table(folder, *seeds):
    columns = [("documents", "documents"), ("pairs", "documents-as-pairs")]
    runs = [[measured(f"{folder}/runs-{seed}", *column) for seed in seeds] for column in columns]
    rows = [["" if len(seeds) == 1 else f"{len(seeds)} seeds: mean (least to most)", "documents", "pairs"]]
    rows += [[name] + [shown(name, [figures[name] for figures in side]) for side in runs] for name in runs[0][0]]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print(f"  {row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}")
    print("  a few points of difference are chance: DEMO_SEEDS='1 2 3' trains with several seeds and shows how much" if len(seeds) == 1 else "", end="\n")


if __name__ == "__main__":
    {"steps": steps, "pair_steps": pair_steps, "table": table}[sys.argv[1]](*sys.argv[2:])
