"""Sums a run of the tests up: test_summary.py RESULTS SEED. Exits with 1 when a test failed or none was run.

RESULTS holds what `scripts/test.sh` leaves: junit.xml and ignored.json of cargo-nextest; unit.log and doc.log of cargo, when they were run.
The last lines name each test that failed, what it said, and the command that runs it alone.
"""

import json
import os
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
    # `--workspace`: of two programs of one name both are run, and the test is in one of them.
    return f"PROPTEST_RNG_SEED={seed} cargo test --workspace --test {suite.partition('::')[2]} -- --exact {test} --nocapture"


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
    meta = listed["rust-build-meta"]
    folders = [os.path.join(meta["target-directory"], path) for path in meta["linked-paths"]]
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


def unit_tests(log):
    """What cargo's own runner said: (name, outcome, reason or output) for each test; one failure more when it could not say."""
    text = ESCAPE.sub("", log.read_text(errors="replace"))
    found, outputs, program = [], {}, "?"
    for line in text.splitlines():
        if running := re.match(r"\s+(?:Running .*\(\S*?/(\w+)-[0-9a-f]+\)|Doc-tests (\w+))$", line):
            program = running[1] or running[2]
        elif tested := re.match(r"test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, (.*))?$", line):
            found.append((f"{program} {tested[1]}", tested[2], tested[3] or ""))
    for name, output in re.findall(r"^---- (.+?) stdout ----\n(.*?)(?=^---- |^failures:|\Z)", text, re.MULTILINE | re.DOTALL):
        outputs[name] = output
    found = [(name, outcome, outputs.get(name.split(" ", 1)[1], "") if outcome == "FAILED" else more) for name, outcome, more in found]
    if re.search(r"^cargo test .* ended with \d+$", text, re.MULTILINE) and not any(outcome == "FAILED" for _, outcome, _ in found):
        # It did not compile, or a test took its process along.
        found.append((log.stem, "FAILED", text))
    return found


def main():
    results, seed = pathlib.Path(sys.argv[1]), sys.argv[2]
    tests, failed, skipped, passed = [], [], [], 0
    for suite in xml.parse(results / "junit.xml").getroot().iter("testsuite"):
        for case in suite.iter("testcase"):
            name = f"{suite.get('name')} {case.get('name')}"
            output = ESCAPE.sub("", "\n".join((part.text or "") for kind in ("system-out", "system-err") for part in case.iter(kind)))
            tests.append((float(case.get("time", 0)), name))
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append((name, output, command(suite.get("name"), case.get("name"), seed)))
            elif why := SKIPPED.search(output):
                skipped.append((name, why[1]))
            else:
                passed += 1
    for name, reason in why_ignored(json.loads((results / "ignored.json").read_text())):
        skipped.append((name, reason))
    for log, option in (("unit.log", "--lib --bins"), ("doc.log", "--doc")):
        if not (results / log).exists():
            continue
        for name, outcome, more in unit_tests(results / log):
            if outcome == "ok":
                passed += 1
            elif outcome == "ignored":
                skipped.append((name, more or "is not run"))
            else:
                alone = "" if option == "--doc" else f" -- --exact {name.split(' ', 1)[-1]} --nocapture"
                failed.append((name, more, f"PROPTEST_RNG_SEED={seed} cargo test --workspace {option}{alone}"))

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
            for line in last_words(output):
                print(f"    | {line[:300]}")
            own = AGAIN.findall(output)
            print(f"    alone: {own[-1] if own else again}")
    print(f"\n{passed} passed, {len(failed)} failed, {len(skipped)} skipped")
    if not passed and not failed:
        print("no test was run", file=sys.stderr)
    return 1 if failed or not passed else 0


def last_words(output):
    """The end of what a test wrote, without the stack, which its cause does not need to be read."""
    lines = [line for line in re.split(r"^\s*(?:Stack backtrace|stack backtrace):", output, flags=re.MULTILINE)[0].splitlines() if line.strip()]
    return lines[-LAST_LINES:]


if __name__ == "__main__":
    sys.exit(main())
