#!/usr/bin/env python3
"""Images per second and core of the image pipeline against Pillow + torchvision, on the same files, one thread each, in turns.

    .deps/py/bin/python bench/image.py [--rounds 7] [--side 224] [--photos PACKAGES]

From bytes in memory to a normalised float32 tensor: decode, RandomResizedCrop (bicubic), ToTensor, Normalize. The files are photographs from
the scikit-image and scikit-learn packages (installed, or unpacked under PACKAGES; neither is imported), cut to 4:3 and encoded at 640 x 480,
quality 90, as JPEG, and the same as PNG and WebP; "large" are the two that have 0.9 and 2 million pixels, as JPEG in their own size.
Timed is processor time, so that other programs on the machine disturb little. Prints Markdown rows: images, ours, Pillow's (median and range of the rounds),
ratio of the medians; then what decoding at reduced scale changes.
"""

import argparse
import importlib.util
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PHOTOS = {
    "skimage": [
        "data/" + name
        for name in "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png "
        "motorcycle_left.png motorcycle_right.png retina.jpg rocket.jpg".split()
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
LARGE = ("hubble_deep_field", "retina")


def package_folder(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SystemExit(f"{name} is missing: pip install --no-deps --target DIR scikit-image scikit-learn, and --photos DIR")
    return Path(spec.submodule_search_locations[0])


def write_files(folder):
    for package, names in PHOTOS.items():
        for name in names:
            photo = Image.open(package_folder(package) / name).convert("RGB")
            stem = Path(name).stem
            if stem in LARGE:
                (folder / "large").mkdir(exist_ok=True)
                photo.save(folder / "large" / f"{stem}.jpg", quality=90)
            width, height = min(photo.width, photo.height * 4 // 3), min(photo.height, photo.width * 3 // 4)
            left, top = (photo.width - width) // 2, (photo.height - height) // 2
            photo = photo.crop((left, top, left + width, top + height)).resize((640, 480), Image.LANCZOS)
            for kind, options in {"jpg": {"quality": 90}, "png": {}, "webp": {"quality": 90}}.items():
                (folder / kind).mkdir(exist_ok=True)
                photo.save(folder / kind / f"{stem}.{kind}", **options)


def torchvision_transform(side, least):
    bicubic = InterpolationMode.BICUBIC
    if least < 1:
        first = [transforms.RandomResizedCrop(side, scale=(least, 1.0), ratio=(3 / 4, 4 / 3), interpolation=bicubic)]
    else:
        first = [transforms.Resize(side, bicubic), transforms.CenterCrop(side)]
    return transforms.Compose([*first, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])


def reference_rate(files, transform):
    start = time.thread_time()
    for file in files:
        image = Image.open(io.BytesIO(file))
        image.load()
        transform(image.convert("RGB"))
    return len(files) / (time.thread_time() - start)


class Ours:
    def __init__(self, binary):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, *words):
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit("bench_image ended early")
        return float(answer[0]), float(answer[1])

    def rate(self, folder, side, least, reduced):
        seconds, images = self.ask(folder, side, least, int(reduced))
        return images / seconds


def built_example():
    build = ["cargo", "build", "--release", "-p", "lcl-data", "--example", "bench_image", "--message-format", "json"]
    messages = subprocess.run(build, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return next(m["executable"] for m in map(json.loads, messages) if m.get("target", {}).get("name") == "bench_image")


def shown(rates):
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--photos", help="folder in which scikit-image and scikit-learn are unpacked")
    parser.add_argument("--binary", help="bench_image, when it is built already")
    args = parser.parse_args()
    if args.photos:
        sys.path.append(args.photos)
    torch.set_num_threads(1)
    ours = Ours(args.binary or built_example())
    print("| images, to %d | lcl, images/s/core | lcl at reduced scale | Pillow + torchvision | ratio | ratio, reduced |\n|---|---|---|---|---|---|" % args.side)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_files(folder)
        for kind, name, least in [
            ("jpg", "JPEG 640 x 480, crop 0.9 to 1 (the recipe)", 0.9),
            ("jpg", "JPEG 640 x 480, crop 0.08 to 1", 0.08),
            ("jpg", "JPEG 640 x 480, evaluation", 1),
            ("large", "JPEG, large, crop 0.9 to 1", 0.9),
            ("png", "PNG 640 x 480, crop 0.9 to 1", 0.9),
            ("webp", "WebP 640 x 480, crop 0.9 to 1", 0.9),
        ]:
            files = [path.read_bytes() for path in sorted((folder / kind).iterdir())]
            transform = torchvision_transform(args.side, least)
            full, reduced, reference = [], [], []
            for round_number in range(args.rounds + 1):
                rates = (
                    ours.rate(folder / kind, args.side, least, False),
                    ours.rate(folder / kind, args.side, least, True),
                    reference_rate(files, transform),
                )
                if round_number > 0:  # the first warms up
                    for rate, column in zip(rates, (full, reduced, reference), strict=True):
                        column.append(rate)
            medians = [statistics.median(column) for column in (full, reduced, reference)]
            ratios = f"{medians[0] / medians[2]:.2f} | {medians[1] / medians[2]:.2f}"
            print(f"| {name} | {shown(full)} | {shown(reduced)} | {shown(reference)} | {ratios} |", flush=True)
        for kind, side in (("jpg", args.side), ("jpg", args.side // 2), ("large", args.side)):
            mean, worst = ours.ask("difference", folder / kind, side)
            print(f"\nReduced scale changes {kind} to {side} by {mean:.2f} of 255 on average, {worst:.2f} on the worst image.", end="")
        print()


if __name__ == "__main__":
    main()
