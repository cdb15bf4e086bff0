"""Writes images.json (what was built, from what) and prints a line for each image: summary.py OUT IMAGE.json..."""

import json
import pathlib
import subprocess
import sys

out = pathlib.Path(sys.argv[1])
images = [json.loads(pathlib.Path(file).read_bytes()) for file in sys.argv[2:]]


def version(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# Two machines that agree in these agree in the digests.
made_from = {
    "rustc": version("rustc", "--version"),
    "gcc": version("gcc", "-dumpfullversion"),
    **{
        package: version("dpkg-query", "--showformat=${Version}", "--show", package)
        for package in ("libc6", "libstdc++6", "libgcc-s1", "ca-certificates", "binutils")
    },
}
for image in images:
    image["archive"] = image["reference"].rsplit("/", 1)[-1].split(":")[0] + ".tar"
(out / "images.json").write_text(json.dumps({"images": images, "madeFrom": made_from}, indent=2) + "\n")
for image in images:
    print(f"{image['reference']:32} {image['bytes'] / 1e6:8.1f} MB compressed  {image['digest']}")
