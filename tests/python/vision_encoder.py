"""The exported vision encoder in plain numpy, written from the model's definition alone, to check an export from outside.

Usage: vision_encoder.py EXPORT.safetensors EXPECTED.safetensors TOLERANCE
EXPECTED holds `images` [n, 3, S, S] and `features` [n, E], the L2-normalised vectors that the trainer computes for them.
Prints the greatest difference; the exit code is 1 when it exceeds TOLERANCE.
"""

import json
import math
import sys

import numpy as np
from safetensors import safe_open

EPSILON = 1e-5


def layer_norm(x, weights, name):
    mean = x.mean(-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + EPSILON) * weights[name + ".weight"] + weights[name + ".bias"]


def gelu(x):
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def attend(query, key, value, heads):
    """[n, tokens, width] each -> [n, query tokens, width]"""

    def split(x):
        n, tokens, width = x.shape
        return x.reshape(n, tokens, heads, width // heads).transpose(0, 2, 1, 3)

    query, key, value = split(query), split(key), split(value)
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    context = scores / scores.sum(-1, keepdims=True) @ value
    n, heads, tokens, size = context.shape
    return context.transpose(0, 2, 1, 3).reshape(n, tokens, heads * size)


def block(x, weights, name, heads):
    normed = layer_norm(x, weights, name + ".ln_1")
    joint = normed @ weights[name + ".attn.in_proj_weight"].T + weights[name + ".attn.in_proj_bias"]
    attended = attend(*np.split(joint, 3, -1), heads)
    branch = attended @ weights[name + ".attn.out_proj.weight"].T + weights[name + ".attn.out_proj.bias"]
    x = x + branch * weights.get(name + ".ls_1.gamma", 1.0)
    normed = layer_norm(x, weights, name + ".ln_2")
    hidden = gelu(normed @ weights[name + ".mlp.c_fc.weight"].T + weights[name + ".mlp.c_fc.bias"])
    branch = hidden @ weights[name + ".mlp.c_proj.weight"].T + weights[name + ".mlp.c_proj.bias"]
    return x + branch * weights.get(name + ".ls_2.gamma", 1.0)


def patch_tokens(images, weights, vision):
    patch, width = vision["patchSize"], vision["width"]
    n, channels, side, _ = images.shape
    grid = side // patch
    cut = images.reshape(n, channels, grid, patch, grid, patch).transpose(0, 2, 4, 1, 3, 5).reshape(n, grid * grid, -1)
    x = cut @ weights["visual.conv1.weight"].reshape(width, -1).T
    class_token = np.broadcast_to(weights["visual.class_embedding"], (n, 1, width))
    x = np.concatenate([class_token, x], 1) + weights["visual.positional_embedding"]
    x = layer_norm(x, weights, "visual.ln_pre")
    for layer in range(vision["layers"]):
        x = block(x, weights, f"visual.transformer.resblocks.{layer}", vision["heads"])
    return layer_norm(x, weights, "visual.ln_post")[:, 1:]


def encode(images, weights, shape):
    tokens = patch_tokens(images, weights, shape["vision"])
    name = "pool_project.pooler."

    def project(x, part):
        x = layer_norm(x, weights, f"{name}norm1_{part}")
        return x @ weights[f"{name}cross_attn.{part}.weight"].T + weights[f"{name}cross_attn.{part}_bias"]

    query = np.broadcast_to(weights["pool_project.query_token"], (len(images), 1, tokens.shape[-1]))
    pooled = attend(project(query, "q"), project(tokens, "k"), project(tokens, "v"), shape["poolHeads"])
    pooled = pooled[:, 0] @ weights[name + "cross_attn.proj.weight"].T
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True)


def read(path):
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}, file.metadata() or {}


def main():
    export, expected, tolerance = sys.argv[1], sys.argv[2], float(sys.argv[3])
    weights, metadata = read(export)
    strangers = [name for name in weights if not name.startswith(("visual.", "pool_project."))]
    if strangers:
        sys.exit(f"the export of the vision encoder holds {strangers[0]}")
    expected, _ = read(expected)
    features = encode(expected["images"], weights, json.loads(metadata["shape"]))
    difference = float(np.abs(features - expected["features"]).max())
    print(f"greatest difference {difference:.2e}")
    if not difference <= tolerance:
        sys.exit(f"greatest difference {difference:.2e} exceeds {tolerance:.0e}")


if __name__ == "__main__":
    main()
