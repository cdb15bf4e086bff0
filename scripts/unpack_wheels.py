"""Takes out of Python wheels what is no Python: unpack_wheels.py KIND WHEELS OUT.

libtorch       libraries and headers of PyTorch, with what CUDA's runtime its CPU library is linked with
cuda-headers   headers of CUDA and NCCL
program        what a wheel would put on the PATH
"""

import pathlib
import re
import sys
import zipfile

LICENCE = re.compile(r"([^/-]*)[^/]*\.dist-info/(?:.*/)?((?:LICENSE|License|NOTICE)[^/]*)$")
# Python bindings and CUDA device code are not linked by a program without Python; nvshmem needs libraries of its own.
UNWANTED = re.compile(r"libtorch_python|libtorch_nvshmem|libshm_windows")
# By kind: the members to take, each with the name it gets; and what must have come.
KINDS = {
    "libtorch": (
        [(r"torch/(lib/lib[^/]*|include/.*|version\.py)$", r"\1"), (r"nvidia/cu13/(lib/(?:libcudart|libcupti)\.so[^/]*)$", r"\1")],
        ["lib/libtorch_cpu.so", "lib/libc10.so", "lib/libcudart.so.13", "lib/libcupti.so.13"]
        + ["include/torch/csrc/autograd/custom_function.h", "licenses/torch/LICENSE"],
    ),
    "cuda-headers": (
        [(r"nvidia/(?:cu13|nccl)/(include/(?!cccl/).*)", r"\1")],
        ["include/cuda_runtime_api.h", "include/crt/host_defines.h", "include/nv/target", "include/nccl.h"],
    ),
    "program": ([(r"[^/]*\.data/scripts/([^/]*)$", r"\1")], []),
}


def name_of(member, rules):
    """Where a member goes, or None when it is not wanted."""
    if member.endswith("/") or UNWANTED.search(member):
        return None
    # What is handed on (images hold these libraries) carries its licences along.
    for pattern, name in [*rules, (LICENCE.pattern, r"licenses/\1/\2")]:
        if found := re.match(pattern, member):
            return found.expand(name)
    return None


def unpack(kind, wheels, out):
    rules, expected = KINDS[kind]
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                name = name_of(member.filename, rules)
                if name is None:
                    continue
                target = out / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(target, "wb") as sink:
                    while block := source.read(1 << 22):
                        sink.write(block)
                if kind == "program":
                    target.chmod(0o755)
    for name in expected:
        if not (out / name).exists():
            sys.exit(f"the wheels lack {name}")


if __name__ == "__main__":
    unpack(sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]))
