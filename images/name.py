"""Gives the one image of an OCI layout its full name, as containerd and Docker import it, and prints what is in it as JSON.

name.py LAYOUT REFERENCE
"""

import json
import pathlib
import sys

layout, reference = pathlib.Path(sys.argv[1]), sys.argv[2]


def blob(descriptor):
    algorithm, digest = descriptor["digest"].split(":")
    return json.loads((layout / "blobs" / algorithm / digest).read_bytes())


index = json.loads((layout / "index.json").read_bytes())
(entry,) = index["manifests"]
# The specification's annotation is the tag alone; containerd's own is the whole name.
entry["annotations"] = {"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": reference.rsplit(":", 1)[1]}
# An archive may hold many platforms, and importers choose by what stands here.
entry["platform"] = {"architecture": "amd64", "os": "linux"}
(layout / "index.json").write_text(json.dumps(index, sort_keys=True))

manifest = blob(entry)
image = {
    "reference": reference,
    "digest": entry["digest"],
    "config": manifest["config"]["digest"],
    "layers": [{"digest": layer["digest"], "bytes": layer["size"]} for layer in manifest["layers"]],
    "bytes": sum(layer["size"] for layer in manifest["layers"]),
}
json.dump(image, sys.stdout)
