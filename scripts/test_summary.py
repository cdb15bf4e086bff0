"""Sums a run of the tests up: test_summary.py RESULTS SEED. Exits with 1 when a test failed or none was run.

RESULTS holds what `scripts/test.sh` leaves: junit.xml, ignored.json, and doc.log when the examples in documentation were run.
The last lines name each test that failed, what it said, and the command that runs it alone.
"""

import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as xml

# Of what a failed test wrote: enough for a message with its causes, not the log of a run.
LAST_LINES = 12
SLOWEST = 10
SKIPPED = re.compile(r"^skipped: (.*)$", re.MULTILINE)
# What tests with seeds or plans of their own say.
AGAIN = re.compile(r"`(make [^`]*|PROPTEST[^`]*)`")
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def command(suite, test, seed):
    """What runs this test alone. Cargo builds what is built for all tests, so nothing is compiled twice."""
    package, _, binary = suite.partition("::")
    words = re.sub(r"[^\w:]", "", test)
    if binary.startswith("bin/"):
        target = f"--bin {binary.removeprefix('bin/')}"
    elif binary:
        target = f"--test {binary}"
    else:
        target = f"--workspace --lib"
    scope = "" if target.startswith("--workspace") else "--workspace "
    return f"PROPTEST_RNG_SEED={seed} cargo test {scope}{target} -- --exact {words} --nocapture  # of {package}"


def why_ignored(listed):
    """Names of tests that run only when asked for, each with the reason that libtest gives."""
    for suite in listed["rust-suites"].values():
        names = [name for name, case in suite.get("testcases", {}).items() if case["ignored"] and case["filter-match"]["status"] == "matches"]
        if not names:
            continue
        said = subprocess.run([suite["binary-path"], *names, "--exact"], capture_output=True, text=True, cwd=suite["cwd"], env=environment(listed)).stdout
        for name in names:
            reason = re.search(rf"^test {re.escape(name)} \.\.\. ignored(?:, (.*))?$", said, re.MULTILINE)
            yield f"{suite['binary-id']} {name}", (reason and reason[1]) or "runs only when asked for"


def environment(listed):
    """Where programs that are started past cargo find libtorch and Rust's own libraries."""
    import os

    meta = listed["rust-build-meta"]
    folders = [os.path.join(meta["target-directory"], path) for path in meta["linked-paths"]]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def main():
    results, seed = pathlib.Path(sys.argv[1]), sys.argv[2]
    tests, failed, skipped = [], [], []
    for suite in xml.parse(results / "junit.xml").getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = f"{suite.get('name')} {case.get('name')}"
            output = ESCAPE.sub("", "\n".join((part.text or "") for kind in ("system-out", "system-err") for part in case.iter(kind)))
            tests.append((float(case.get("time", 0)), name))
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append((name, output, command(suite.get("name"), case.get("name"), seed)))
            elif why := SKIPPED.search(output):
                skipped.append((name, why[1]))
    for name, reason in why_ignored(json.loads((results / "ignored.json").read_text())):
        skipped.append((name, reason))
    examples = 0
    if (doc := results / "doc.log").exists():
        text = doc.read_text()
        examples = sum(int(count) for count in re.findall(r"^test result: \w+\. (\d+) passed", text, re.MULTILINE))
        for name in re.findall(r"^test (.*) \.\.\. FAILED$", text, re.MULTILINE):
            failed.append((name, text, "cargo test --workspace --doc"))
        if not failed and "error" in text and "test result" not in text:
            failed.append(("documentation", text, "cargo test --workspace --doc"))
    not_run = {name for name, _ in skipped}
    passed = sum(1 for _, name in tests if name not in not_run) + examples - sum(1 for name, _, _ in failed if any(name == other for _, other in tests))

    print(f"\nthe {SLOWEST} slowest")
    for seconds, name in sorted(tests, reverse=True)[:SLOWEST]:
        print(f"{seconds:8.1f} s  {name}")
    if skipped:
        print("\nskipped")
        for name, reason in sorted(skipped):
            print(f"  {name}: {reason}")
    if failed:
        print(f"\nfailed (seed {seed})")
        for name, output, again in failed:
            print(f"\n  {name}")
            lines = [line for line in output.strip().splitlines() if line.strip()]
            for line in lines[-LAST_LINES:]:
                print(f"    | {line[:300]}")
            own = AGAIN.findall(output)
            print(f"    alone: {own[-1] if own else again}")
    print(f"\n{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    if not tests:
        print("no test was run", file=sys.stderr)
    return 1 if failed or not tests else 0


if __name__ == "__main__":
    sys.exit(main())
