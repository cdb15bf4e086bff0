#!/usr/bin/env python3
"""Images per second and core of the image pipeline against Pillow + torchvision and against the fastest decoders with torchvision's v2 transforms,
on the same files, in turns.

    .deps/py/bin/python bench/image.py [--rounds 7] [--side 224] [--photos PACKAGES] [--binary bench_image]

Three ways from bytes in memory to the model's input: RandomResizedCrop (bicubic, antialiased), or the evaluation transform.

- Pillow + torchvision: `Image.open(..).convert("RGB")`, RandomResizedCrop, ToTensor, Normalize. Compared with our normalised float32.
- The fastest of the ecosystem: simplejpeg, or torchvision's own decoder, then `v2.functional.resized_crop` on 8-bit tensors. Compared with our 8-bit
  pixels, which are what the loader makes. Both decoders are measured, the ratio is to the faster one.

"Equal pixels": every side decodes the whole image as libjpeg does by default. "Scaled": every side that can lets the decoder reduce by 1, 2, 4 or 8, by
one rule: the crop keeps 1.1 times the output's pixels (`Image.draft`, simplejpeg's `min_width`; torchvision's decoder cannot).

The files are the photographs of scikit-image and scikit-learn (installed, or unpacked under PACKAGES; neither is imported) at their own resolution:
those that are JPEG as they are, the others encoded at quality 90; the same with 256 pixels on the shortest side at quality 95, as img2dataset leaves
them; as WebP of quality 90; and, as in earlier runs, cut to 4:3 at 640 x 480. One core counts processor time, so that other programs disturb little; all
cores count the clock. "Loader" is from shards of the 256-pixel files to batches, by processor time of all threads. Prints Markdown.
"""

import argparse
import importlib.util
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import simplejpeg
import torch
from PIL import Image
from torchvision import io as tensors
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

ROOT = Path(__file__).resolve().parent.parent
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
RATIO, MARGIN, LEAST_SECONDS = (3 / 4, 4 / 3), 1.1, 0.25
BICUBIC = InterpolationMode.BICUBIC
PHOTOS = {
    "skimage": [
        "data/" + name
        for name in "astronaut.png brick.png camera.png chelsea.png coffee.png coins.png grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png "
        "motorcycle_left.png motorcycle_right.png retina.jpg rocket.jpg".split()
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def package_folder(name):
    spec = importlib.util.find_spec(name)
    if spec is None:
        raise SystemExit(f"{name} is missing: pip install --no-deps --target DIR scikit-image scikit-learn, and --photos DIR")
    return Path(spec.submodule_search_locations[0])


def write_files(folder):
    for kind in ("own", "own_webp", "short", "jpg", "png"):
        (folder / kind).mkdir()
    for package, names in PHOTOS.items():
        for name in names:
            path = package_folder(package) / name
            photo, stem = Image.open(path).convert("RGB"), Path(name).stem
            if path.suffix == ".jpg":
                (folder / "own" / path.name).write_bytes(path.read_bytes())
            else:
                photo.save(folder / "own" / f"{stem}.jpg", quality=90)
            photo.save(folder / "own_webp" / f"{stem}.webp", quality=90)
            scale = 256 / min(photo.size)
            short = photo.resize((round(photo.width * scale), round(photo.height * scale)), Image.LANCZOS)
            short.save(folder / "short" / f"{stem}.jpg", quality=95)
            width, height = min(photo.width, photo.height * 4 // 3), min(photo.height, photo.width * 3 // 4)
            left, top = (photo.width - width) // 2, (photo.height - height) // 2
            photo = photo.crop((left, top, left + width, top + height)).resize((640, 480), Image.LANCZOS)
            photo.save(folder / "jpg" / f"{stem}.jpg", quality=90)
            photo.save(folder / "png" / f"{stem}.png")


def write_shards(files, folder, shards=4, samples=512):
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05}.tar", "w") as archive:
            for sample in range(samples):
                key, image = f"{shard:05}{sample:05}", files[sample % len(files)]
                for suffix, content in (("jpg", image), ("txt", f"a photograph of number {sample}, seen from the front".encode())):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def draw(width, height, least):
    return transforms.RandomResizedCrop.get_params(torch.empty(1, height, width), (least, 1.0), RATIO)


def reduction(box, side):
    return next((by for by in (8, 4, 2) if min(box[2:]) >= side * MARGIN * by), 1)


def scaled(box, by):
    top, left, height, width = box
    return top // by, left // by, -(-height // by), -(-width // by)


class Pillow:
    def __init__(self, side, least, reduced):
        self.side, self.least, self.reduced = side, least, reduced
        self.finish = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.evaluate = transforms.Compose([transforms.Resize(side, BICUBIC), transforms.CenterCrop(side)])

    def __call__(self, file):
        image = Image.open(io.BytesIO(file))
        if self.least == 1:
            return self.finish(self.evaluate(image.convert("RGB")))
        box = draw(*image.size, self.least)
        if self.reduced and (by := reduction(box, self.side)) > 1:
            image.draft("RGB", (image.width // by, image.height // by))
            box = scaled(box, by)
        top, left, height, width = box
        image = transforms.functional.resized_crop(image.convert("RGB"), top, left, height, width, [self.side] * 2, BICUBIC)
        return self.finish(image)


class Tensors:
    """Decodes to an 8-bit tensor and goes on with the v2 transforms."""

    def __init__(self, side, least, reduced, decoder):
        self.side, self.least, self.reduced, self.decoder = side, least, reduced, decoder

    def decode(self, file, least=(0, 0)):
        if self.decoder == "simplejpeg":
            pixels = simplejpeg.decode_jpeg(file, "RGB", min_height=least[0], min_width=least[1])
            return torch.from_numpy(pixels).permute(2, 0, 1)
        data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        decode = tensors.decode_webp if self.decoder == "webp" else tensors.decode_jpeg
        return decode(data, mode=tensors.ImageReadMode.RGB)

    def __call__(self, file):
        size = [self.side] * 2
        if self.least == 1:
            image = functional.resize(self.decode(file), [self.side], BICUBIC, antialias=True)
            return functional.center_crop(image, size).contiguous()
        if self.reduced and self.decoder == "simplejpeg":
            height, width, *_ = simplejpeg.decode_jpeg_header(file)
            box = draw(width, height, self.least)
            by = reduction(box, self.side)
            image = self.decode(file, (-(-height // by), -(-width // by)) if by > 1 else (0, 0))
            top, left, height, width = scaled(box, by)
        else:
            image = self.decode(file)
            top, left, height, width = draw(image.shape[2], image.shape[1], self.least)
        return functional.resized_crop(image, top, left, height, width, size, BICUBIC, antialias=True).contiguous()


def rate(files, transform, clock=time.thread_time):
    start, images = clock(), 0
    while clock() - start < LEAST_SECONDS:
        for file in files:
            transform(file)
        images += len(files)
    return images / (clock() - start)


def work(files, transform, begin, rates):
    torch.set_num_threads(1)
    rate(files, transform)
    begin.wait()
    rates.put(rate(files, transform, time.perf_counter))


def rate_of_all(files, transform, processes):
    context = multiprocessing.get_context("fork")
    begin, rates = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=work, args=(files, transform, begin, rates)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    total = sum(rates.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


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

    def rate(self, *words):
        seconds, images = self.ask(*words)
        return images / seconds


def built_example():
    build = ["cargo", "build", "--release", "-p", "lcl-data", "--example", "bench_image", "--message-format", "json"]
    messages = subprocess.run(build, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return next(m["executable"] for m in map(json.loads, messages) if m.get("target", {}).get("name") == "bench_image")


def shown(rates):
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def compare(ours, folder, kind, least, reduced, threads, args):
    files = [path.read_bytes() for path in sorted((folder / kind).iterdir())]
    decoders = {"png": [], "own_webp": ["webp"]}.get(kind, ["simplejpeg", "torchvision"])
    if reduced:
        decoders = ["simplejpeg"]
    measure = rate if threads == 1 else lambda files, transform: rate_of_all(files, transform, threads)
    others = {"Pillow": Pillow(args.side, least, reduced)} | {name: Tensors(args.side, least, reduced, name) for name in decoders}
    columns = {name: [] for name in ["floats", "bytes", *others]}
    for round_number in range(args.rounds + 1):
        # In turns; the first round warms up.
        for name, column in columns.items():
            if name in others:
                value = measure(files, others[name])
            else:
                value = ours.rate("images", folder / kind, args.side, least, int(reduced), name, threads)
            if round_number > 0:
                column.append(value)
    medians = {name: statistics.median(column) for name, column in columns.items()}
    fastest = max((medians[name], name) for name in decoders) if decoders else None
    to_fastest = f"{medians['bytes'] / fastest[0]:.2f} ({fastest[1]})" if fastest else ""
    cells = [shown(columns[name]) if name in columns else "" for name in ("floats", "bytes", "Pillow", "simplejpeg")]
    decoder = shown(columns[name]) if (name := "webp" if kind == "own_webp" else "torchvision") in columns else ""
    return f"{' | '.join([*cells, decoder])} | {medians['floats'] / medians['Pillow']:.2f} | {to_fastest} |"


ROWS = [
    ("own", "JPEG, own resolution, crop 0.9 to 1 (the recipe)", 0.9, False, 1),
    ("own", "the same, scaled decoding", 0.9, True, 1),
    ("own", "the same, all cores", 0.9, False, 0),
    ("own", "the same, all cores, scaled decoding", 0.9, True, 0),
    ("own", "JPEG, own resolution, crop 0.08 to 1", 0.08, False, 1),
    ("own", "JPEG, own resolution, evaluation", 1, False, 1),
    ("short", "JPEG, 256 px, crop 0.9 to 1", 0.9, False, 1),
    ("short", "the same, all cores", 0.9, False, 0),
    ("jpg", "JPEG 640 x 480, crop 0.9 to 1", 0.9, False, 1),
    ("png", "PNG 640 x 480, crop 0.9 to 1", 0.9, False, 1),
    ("own_webp", "WebP, own resolution, crop 0.9 to 1", 0.9, False, 1),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--photos", help="folder in which scikit-image and scikit-learn are unpacked")
    parser.add_argument("--binary", help="bench_image, when it is built already")
    parser.add_argument("--rows", default="", help="only rows whose text has this in it")
    args = parser.parse_args()
    if args.photos:
        sys.path.append(args.photos)
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    ours = Ours(args.binary or built_example())
    print(f"All cores: {cores}. Images/s (of one core where nothing else is said), median (range) of {args.rounds} rounds, to {args.side}.\n")
    print("| images | lcl, float32 | lcl, 8 bits | Pillow + torchvision | simplejpeg + v2 | torchvision's decoder + v2 | to Pillow | to the fastest |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_files(folder)
        for kind, name, least, reduced, threads in ROWS:
            if args.rows in name:
                print(f"| {name} | {compare(ours, folder, kind, least, reduced, threads or cores, args)}", flush=True)
        write_shards([path.read_bytes() for path in sorted((folder / "short").iterdir())], folder / "shards")
        for threads in sorted({1, cores}):
            rates = [ours.rate("loader", folder / "shards", args.side, threads) for _ in range(args.rounds)]
            print(f"\nLoader, shards of JPEGs of 256 px to batches, {threads} threads: {shown(rates)} images/s per core.", end="", flush=True)
        for kind, side in (("jpg", args.side), ("jpg", args.side // 2), ("own", args.side)):
            mean, worst = ours.ask("difference", folder / kind, side)
            print(f"\nReduced scale changes {kind} to {side} by {mean:.2f} of 255 on average, {worst:.2f} on the worst image.", end="")
        print()


if __name__ == "__main__":
    main()
