#!/usr/bin/env python3
"""The arithmetic of a training step, by formula: what MFU (model FLOP/s utilization) is a share of.

    flops.py --model l14 --rows 64             operations of a step of `bench/step.py`'s batch
    flops.py --check                           compare the formula with PyTorch's counter, on small models (needs torch)

Counted are the products of matrices that the model asks for, a multiplication with its addition as two: linear layers, attention, the
patch embedding, the head at the predicted positions, the similarities. With N = patches + 1 tokens of width w in L layers an image takes
24 L N w² + 4 L N² w, a row of T tokens of width d in M layers 24 M T d² + 2 M T² d (attention is causal: half of T² is asked for), a
predicted position 2 d V. The backward pass takes twice the forward one, without gradients of pixels. Nothing that is computed again
(activation checkpointing, blocks of the head) counts, so it is the same number for every implementation; norms, activations and the
optimizer are not counted.
"""

import argparse
import dataclasses
import pathlib

# Dense bfloat16 products of matrices, in FLOP/s, by what the driver calls the device (NVIDIA's data sheets).
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12}


@dataclasses.dataclass(frozen=True)
class Shape:
    image: int
    patch: int
    vision_width: int
    vision_layers: int
    text_width: int
    text_layers: int
    vocabulary: int
    embed: int
    text_tokens: int

    @property
    def patches(self):
        return (self.image // self.patch) ** 2


SHAPES = {
    "61m": Shape(224, 32, 384, 6, 384, 6, 49411, 384, 77),
    "tiny": Shape(64, 16, 128, 4, 128, 4, 49411, 128, 24),
    "b16": Shape(224, 16, 768, 12, 768, 12, 49411, 768, 77),
    "l14": Shape(224, 14, 1024, 24, 768, 12, 49411, 768, 77),
}


def step_flops(shape, rows, causal=0.5):
    """Operations of a step over `rows` rows as `batch` of step.py makes them: an image and a text each, every second one text first.
    `causal`: the share of T² that causal attention is counted with."""
    s, contrasts = shape, rows // 2
    tokens, length = s.patches + 1, s.patches + 2 + s.text_tokens + 1
    predicted = s.text_tokens + 1
    embedding = 2 * s.patches * 3 * s.patch**2 * s.vision_width
    vision = s.vision_layers * (24 * tokens * s.vision_width**2 + 4 * tokens**2 * s.vision_width)
    # Keys and values of every patch, values projected for the text; the pooled token.
    pool = 4 * s.patches * s.vision_width * s.embed + 2 * s.patches * s.embed**2 + 4 * s.patches * s.embed + 2 * s.embed**2
    text = s.text_layers * (24 * length * s.text_width**2 + causal * 4 * length**2 * s.text_width)
    head = 2 * predicted * s.text_width * s.vocabulary
    contrast = contrasts * 2 * s.text_width * s.embed + 2 * contrasts**2 * s.embed
    query = 2 * s.vision_width * s.embed
    return 3 * (rows * (vision + pool + text + head) + contrast + query) + 2 * rows * embedding


def peak_of(device):
    """FLOP/s of a device by its name, or None."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def check():
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    import step

    torch.set_num_threads(1)
    for name, rows in (("tiny", 4), ("61m", 2)):
        model, vision, text_tokens, _ = step.model_of(name)
        images, tokens = step.inputs(vision, rows, text_tokens, torch.device("cpu"))
        # As products of matrices: fused kernels compute scores twice, or are not known to the counter.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            generation, contrastive = model(images, tokens)
            (step.GENERATION_WEIGHT * generation + step.CONTRASTIVE_WEIGHT * contrastive).backward()
        counted, formula = counter.get_total_flops(), step_flops(SHAPES[name], rows, causal=1.0)
        print(f"{name}, {rows} rows: {counted:,} operations counted, {formula:,.0f} by the formula with whole attention")
        assert formula == counted, "the formula is not what PyTorch counts"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="61m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check()
    else:
        print(f"{step_flops(SHAPES[arguments.model], arguments.rows):.4e}")


if __name__ == "__main__":
    main()
