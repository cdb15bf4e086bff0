"""Prints the licence texts of every crate that is in a program, each text once: licenses.py PROGRAM (a member of the workspace)."""

import json
import pathlib
import re
import subprocess
import sys

TRIPLE = "x86_64-unknown-linux-gnu"
TEXT = re.compile(r"(licen[cs]e|copying|notice|unlicense)", re.IGNORECASE)

command = ["cargo", "metadata", "--format-version", "1", "--locked", "--offline", "--filter-platform", TRIPLE]
metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
packages = {package["id"]: package for package in metadata["packages"]}
nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
(root,) = (package["id"] for package in packages.values() if package["name"] == sys.argv[1] and package["source"] is None)
reached, waiting = set(), [root]
while waiting:
    package = waiting.pop()
    if package not in reached:
        reached.add(package)
        # What only builds or tests a program is not in it.
        waiting += [edge["pkg"] for edge in nodes[package]["deps"] if any(kind["kind"] is None for kind in edge["dep_kinds"])]

names = {}
for package in (packages[identity] for identity in reached):
    if package["source"] is None:
        continue
    name = f"{package['name']} {package['version']} ({package['license']})"
    folder = pathlib.Path(package["manifest_path"]).parent
    # One folder deeper lie the texts of what a crate bundles, libjpeg-turbo for one.
    files = sorted(file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.is_file() and TEXT.match(file.name))
    texts = [file.read_text(errors="replace").strip() for file in files if file.suffix not in (".rs", ".py", ".png")]
    for text in texts or ["No text comes with the crate; the licence is named above."]:
        names.setdefault(text, set()).add(name)
for text, users in sorted(names.items(), key=lambda item: sorted(item[1])):
    print("\n".join(sorted(users)), text, "-" * 80, sep="\n\n")
