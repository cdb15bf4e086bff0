"""Writes an archive of an image with one file: image.py PROGRAM NAME ARCHIVE. The same program gives the same bytes."""

import hashlib
import io
import json
import sys
import tarfile


def member(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(data))


def main(program: str, name: str, path: str) -> None:
    with open(program, "rb") as file:
        content = file.read()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        member(layer, "pause", content, 0o755)
    layer_digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    config = json.dumps(
        {
            # Without a platform an import finds nothing to unpack.
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65532:65532"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{layer_digest}/layer.tar"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]).encode()
    with tarfile.open(path, "w") as archive:
        member(archive, layer_name, buffer.getvalue())
        member(archive, config_name, config)
        member(archive, "manifest.json", manifest)


if __name__ == "__main__":
    main(*sys.argv[1:])
