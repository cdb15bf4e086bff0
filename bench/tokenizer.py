#!/usr/bin/env python3
"""Texts per second of the tokenizer against the reference's (`open_clip` SimpleTokenizer), one thread each, in turns, both warm.

    .deps/py/bin/python bench/tokenizer.py [--rounds 5] [--seconds 2]

Three lists of texts: the demo's captions (names, keywords and categories of the emoji in `.deps/emoji`), the same with every tenth
text replaced by one beyond ASCII, and the damaged strings of the test corpus. Before timing, the ids of every text are compared.
Prints Markdown rows: list, texts, ours, the reference's (median and range of the rounds), ratio of the medians.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from open_clip.tokenizer import SimpleTokenizer

ROOT = Path(__file__).resolve().parent.parent


def corpus():
    lines = (ROOT / "trainer/data/tests/fixtures/tokenizer_corpus.jsonl").read_text("ascii").splitlines()[1:]
    return [json.loads(line) for line in lines]


def demo_captions():
    found = sorted(ROOT.glob(".deps/emoji/*/emoji.json"))
    if not found:
        raise SystemExit("no .deps/emoji/*/emoji.json: run scripts/npm-emoji.sh first")
    captions = []
    for emoji in json.loads(found[0].read_text("utf-8")):
        words = ", ".join(name.replace("_", " ") for name in emoji["short_names"])
        captions.append(f"{(emoji['name'] or words).capitalize()}: {words} ({emoji['category']}, {emoji['subcategory']})")
    return captions


def text_lists():
    captions = demo_captions()
    foreign = [case["text"] for case in corpus() if case["class"] == "sentence" and not case["text"].isascii()]
    mixed = [foreign[i // 10 % len(foreign)] if i % 10 == 9 else text for i, text in enumerate(captions)]
    damaged = [case["text"] for case in corpus() if case["class"] != "over-length"]
    return {"emoji captions": captions, "one in ten beyond ASCII": mixed, "test corpus": damaged}


def reference_rate(tokenizer, texts, seconds):
    passes, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for text in texts:
            tokenizer.encode(text)
        passes += 1
    return passes * len(texts) / (time.perf_counter() - start)


def our_result(binary, path, seconds):
    return json.loads(subprocess.run([binary, path, str(seconds)], check=True, capture_output=True, text=True).stdout)


def shown(rates):
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--binary", help="bench_tokenizer, when it is built already")
    args = parser.parse_args()
    binary = args.binary
    if not binary:
        build = ["cargo", "build", "--release", "-p", "lcl-data", "--example", "bench_tokenizer", "--message-format", "json"]
        messages = subprocess.run(build, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()
        built = [json.loads(line) for line in messages]
        binary = next(m["executable"] for m in built if m.get("target", {}).get("name") == "bench_tokenizer")
    tokenizer = SimpleTokenizer()
    print("| texts | number | tokens | lcl, texts/s | reference, texts/s | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, texts in text_lists().items():
            path = str(Path(folder) / "texts.jsonl")
            Path(path).write_text("".join(json.dumps(text) + "\n" for text in texts), "ascii")
            tokens = sum(len(tokenizer.encode(text)) for text in texts)  # also fills the reference's cache of words
            ours, theirs = [], []
            for _ in range(args.rounds):
                result = our_result(binary, path, args.seconds)
                if result["tokens"] != tokens:
                    raise SystemExit(f"{name}: {result['tokens']} tokens, the reference has {tokens}")
                ours.append(result["texts_per_second"])
                theirs.append(reference_rate(tokenizer, texts, args.seconds))
            ratio = statistics.median(ours) / statistics.median(theirs)
            print(f"| {name} | {len(texts):,} | {tokens:,} | {shown(ours)} | {shown(theirs)} | {ratio:.1f} |", flush=True)


if __name__ == "__main__":
    main()
