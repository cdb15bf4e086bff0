"""Writes images.json (what was built, from what) and prints a line for each image: summary.py OUT IMAGE.json...

Images of an earlier run stay in it as long as their archives are there.
"""

import json
import pathlib
import subprocess
import sys

out = pathlib.Path(sys.argv[1])
file = out / "images.json"


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
made = {}
for path in sys.argv[2:]:
    image = json.loads(pathlib.Path(path).read_bytes())
    archive = image["reference"].rsplit("/", 1)[-1].split(":")[0] + ".tar"
    made[archive] = {"archive": archive, **image, "madeFrom": made_from}
earlier = json.loads(file.read_bytes())["images"] if file.exists() else []
images = {image["archive"]: image for image in earlier if (out / image["archive"]).exists()} | made
file.write_text(json.dumps({"images": [images[archive] for archive in sorted(images)]}, indent=2) + "\n")
for image in made.values():
    print(f"{image['reference']:32} {image['bytes'] / 1e6:8.1f} MB compressed  {image['digest']}")
