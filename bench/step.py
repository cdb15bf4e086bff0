"""The training step in plain PyTorch: what `trainer/torch`'s step is measured against.

The same model, losses and optimizer, written the way a careful PyTorch user would for speed: fused QKV with
`scaled_dot_product_attention`, logits only where there is a label, `AdamW(fused=True)`, gradients set to none, bfloat16 by autocast with
its weight cache. `bench/step_compare.py` runs it with an allocator that retains memory.

    step.py --golden tests/golden              check its losses and gradients against the recorded references
    step.py --precision bfloat16 --steps 8     measure; the last line is JSON
"""

import argparse
import json
import math
import os
import pathlib
import resource
import tempfile
import time

import torch
import torch.distributed.nn
import torch.nn.functional as F
from torch import distributed, nn

EPSILON = 1e-5
GENERATION_WEIGHT, CONTRASTIVE_WEIGHT = 1.0, 0.1


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).normal_(std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, causal):
        rows, length, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = qkv.view(rows, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.out_proj(y.transpose(1, 2).reshape(rows, length, width))


class Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, EPSILON)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, EPSILON)
        self.mlp = Mlp(width)

    def forward(self, x, causal):
        x = x + self.attn(self.ln_1(x), causal)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width, heads) for _ in range(layers))

    def forward(self, x, causal):
        for block in self.resblocks:
            x = block(x, causal)
        return x


class Visual(nn.Module):
    def __init__(self, image, patch, width, layers, heads):
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn((image // patch) ** 2 + 1, width) * width**-0.5)
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.ln_pre = nn.LayerNorm(width, EPSILON)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = nn.LayerNorm(width, EPSILON)

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1), x], 1) + self.positional_embedding.to(x.dtype)
        return self.ln_post(self.transformer(self.ln_pre(x), False))[:, 1:]


class Text(nn.Module):
    def __init__(self, width, layers, heads, context, vocabulary, embed):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(context, width) * 0.01)
        self.text_projection = nn.Parameter(torch.randn(width, embed) * width**-0.5)
        self.token_embedding = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.transformer = Transformer(width, layers, heads)
        self.ln_final = nn.LayerNorm(width, EPSILON)


class CrossAttention(nn.Module):
    def __init__(self, width, embed):
        super().__init__()
        self.q_bias, self.k_bias, self.v_bias = (nn.Parameter(torch.zeros(embed)) for _ in range(3))
        self.q, self.k, self.v = (nn.Linear(width, embed, bias=False) for _ in range(3))
        self.proj = nn.Linear(embed, embed, bias=False)


class Pooler(nn.Module):
    def __init__(self, width, embed):
        super().__init__()
        self.norm1_q, self.norm1_k, self.norm1_v = (nn.LayerNorm(width, EPSILON) for _ in range(3))
        self.cross_attn = CrossAttention(width, embed)


class PoolProject(nn.Module):
    def __init__(self, width, embed, heads):
        super().__init__()
        self.heads = heads
        self.query_token = nn.Parameter(torch.randn(1, 1, width))
        self.pooler = Pooler(width, embed)

    def forward(self, x):
        """Pooled vector [n, embed] and one token per patch [n, patches, embed]."""
        pooler, attention = self.pooler, self.pooler.cross_attn
        values = F.linear(pooler.norm1_v(x), attention.v.weight, attention.v_bias)
        keys = F.linear(pooler.norm1_k(x), attention.k.weight, attention.k_bias)
        query = F.linear(pooler.norm1_q(self.query_token), attention.q.weight, attention.q_bias).expand(x.shape[0], -1, -1)
        heads = lambda t: t.unflatten(2, (self.heads, -1)).transpose(1, 2)
        pooled = F.scaled_dot_product_attention(heads(query), heads(keys), heads(values)).transpose(1, 2).flatten(2)
        return attention.proj(pooled).squeeze(1), attention.proj(values)


class Lcl(nn.Module):
    def __init__(self, vision, text, embed, pool_heads, special):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.visual = Visual(**vision)
        self.text = Text(**text, embed=embed)
        self.pool_project = PoolProject(vision["width"], embed, pool_heads)
        self.lm_head = nn.Sequential(nn.LayerNorm(text["width"], EPSILON), nn.Linear(text["width"], text["vocabulary"], bias=False))
        self.special = special

    def places(self, tokens):
        """What is read where: flat indices of image placeholders, of predicting positions and of images with a context, their rows among
        all images, and the predicted ids. Their numbers depend on the ids, so a compiled model is given them."""
        special = self.special
        target = tokens[:, 1:]
        chosen = (target != special["image"]) & (target != special["end"]) & (target != 0)
        predicting = F.pad(chosen, (0, 1)).flatten().nonzero().squeeze(1)
        starts = (tokens == special["start"]).nonzero()
        with_context = starts[:, 1] > 0
        contrast = starts[with_context] @ torch.tensor([tokens.shape[1], 1], device=tokens.device)
        images = (tokens == special["image"]).flatten().nonzero().squeeze(1)
        return images, predicting, target[chosen], contrast, with_context.nonzero().squeeze(1)

    def forward(self, images, tokens, places=None):
        """Generation and contrastive loss, the latter without its weight."""
        if places is not None:
            return self.forward_at(images, tokens, *places)
        special, text = self.special, self.text
        pooled, image_tokens = self.pool_project(self.visual(images))
        x = text.token_embedding(tokens)
        x = x.masked_scatter((tokens == special["image"])[..., None], image_tokens.to(x.dtype))
        h = text.transformer(x + text.positional_embedding[: tokens.shape[1]], True)

        target = tokens[:, 1:]
        chosen = (target != special["image"]) & (target != special["end"]) & (target != 0)
        logits = self.lm_head(h[:, :-1][chosen])
        generation = F.cross_entropy(logits, target[chosen])

        starts = (tokens == special["start"]).nonzero()
        with_context = starts[:, 1] > 0
        rows, columns = starts[with_context].unbind(1)
        u = F.normalize((text.ln_final(h[rows, columns]) @ text.text_projection).float(), dim=-1)
        v = F.normalize(pooled[with_context].float(), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            if distributed.is_initialized():
                return generation, self.contrast_of_members(u, v)
            similarity = self.logit_scale.exp() * v @ u.T
            identity = torch.arange(len(similarity), device=similarity.device)
            contrastive = (F.cross_entropy(similarity, identity) + F.cross_entropy(similarity.T, identity)) / 2
        return generation, contrastive

    def forward_at(self, images, tokens, placeholders, predicting, target, contrast, with_context):
        """As `forward`, with shapes that do not depend on what the tensors hold."""
        text = self.text
        pooled, image_tokens = self.pool_project(self.visual(images))
        x = text.token_embedding(tokens)
        flat = x.flatten(0, 1).index_copy(0, placeholders, image_tokens.flatten(0, 1).to(x.dtype))
        h = text.transformer(flat.view_as(x) + text.positional_embedding[: tokens.shape[1]], True).flatten(0, 1)
        generation = F.cross_entropy(self.lm_head(h[predicting]), target)
        u = F.normalize((text.ln_final(h[contrast]) @ text.text_projection).float(), dim=-1)
        v = F.normalize(pooled[with_context].float(), dim=-1)
        with torch.autocast(images.device.type, enabled=False):
            similarity = self.logit_scale.exp() * v @ u.T
            identity = torch.arange(len(similarity), device=similarity.device)
            contrastive = (F.cross_entropy(similarity, identity) + F.cross_entropy(similarity.T, identity)) / 2
        return generation, contrastive

    def contrast_of_members(self, u, v):
        """This member's rows against those of all, gradients through the gathering (open_clip's `local_loss` with `gather_with_grad`): the
        mean over members, which DDP takes, is the loss of the whole batch. All members have equally many rows."""
        pairs = torch.cat(distributed.nn.functional.all_gather(torch.stack([u, v], 1)))
        labels = torch.arange(len(u), device=u.device) + distributed.get_rank() * len(u)
        scale = self.logit_scale.exp()
        of_images = F.cross_entropy(scale * v @ pairs[:, 0].T, labels)
        return (of_images + F.cross_entropy(scale * u @ pairs[:, 1].T, labels)) / 2


def decays(name, parameter):
    return parameter.dim() >= 2


def golden(folder):
    from safetensors.torch import load_file

    manifest = json.loads((folder / "manifest.json").read_text())
    config = manifest["config"]
    vision, text, pool, ids = (config[k] for k in ("vision_cfg", "text_cfg", "pool_project_cfg", "special_token_ids"))
    model = Lcl(
        dict(image=vision["image_size"], patch=vision["patch_size"], width=vision["width"], layers=vision["layers"],
             heads=vision["width"] // vision["head_width"]),
        dict(width=text["width"], layers=text["layers"], heads=text["heads"], context=text["context_length"], vocabulary=text["vocab_size"]),
        config["embed_dim"], pool["attn_num_heads"],
        dict(image=ids["<img_placehold>"], start=ids["<start_of_img>"], end=ids["<end_of_img>"]),
    )
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    noise = {"pool_project.pooler.norm1_k.bias", "pool_project.pooler.cross_attn.k_bias"}
    for scenario in ("paired", "interleaved"):
        io, expected = load_file(folder / scenario / "io.safetensors"), load_file(folder / scenario / "grads_c0.1.safetensors")
        model.zero_grad()
        generation, contrastive = model(io["image"], io["text"])
        (GENERATION_WEIGHT * generation + CONTRASTIVE_WEIGHT * contrastive).backward()
        losses = manifest["scenarios"][scenario]["losses"]["0.1"]
        for name, value in (("generation", generation), ("contrastive_unweighted", contrastive)):
            error = abs(value.item() / losses[name] - 1)
            assert error < 1e-6, f"{scenario}: {name} differs by {error:.1e}"
        difference = sum(((p.grad - expected[n]).double() ** 2).sum() for n, p in model.named_parameters() if n not in noise)
        size = sum((expected[n].double() ** 2).sum() for n in expected if n not in noise)
        error = (difference / size).sqrt().item()
        worst = max(p.grad.abs().max().item() for n, p in model.named_parameters() if n in noise)
        assert error < 5e-6 and worst < 1e-8, f"{scenario}: gradients differ by {error:.1e}, noise gradients up to {worst:.1e}"
        print(f"{scenario}: losses agree, gradients differ by {error:.1e} (L2, relative)")


def batch(rows, text_tokens, patches):
    """Half the rows image first, half text first, as `bench_step.rs` makes them; the ids are a fixed formula."""
    rows_of_ids = []
    for row in range(rows):
        text = [1 + (row * 7919 + k * 104729) % 49405 for k in range(text_tokens)]
        image = [49409] + [49408] * patches + [49410]
        rows_of_ids.append(image + text + [49407] if row % 2 == 0 else [49406] + text + image)
    return torch.tensor(rows_of_ids)


def model_of(name):
    """The model, its vision shape, text tokens of a row, and rows of a batch."""
    shapes = {
        "61m": (dict(image=224, patch=32, width=384, layers=6, heads=6),
                dict(width=384, layers=6, heads=6, context=130, vocabulary=49411), 384, 6, 16, 77),
        "tiny": (dict(image=64, patch=16, width=128, layers=4, heads=4),
                 dict(width=128, layers=4, heads=4, context=64, vocabulary=49411), 128, 4, 64, 24),
        "b16": (dict(image=224, patch=16, width=768, layers=12, heads=12),
                dict(width=768, layers=12, heads=12, context=280, vocabulary=49411), 768, 12, 16, 77),
        "l14": (dict(image=224, patch=14, width=1024, layers=24, heads=16),
                dict(width=768, layers=12, heads=12, context=340, vocabulary=49411), 768, 12, 16, 77),
    }
    vision, text, embed, pool_heads, rows, text_tokens = shapes[name]
    return Lcl(vision, text, embed, pool_heads, dict(image=49408, start=49409, end=49410)), vision, text_tokens, rows


def optimizer_of(model):
    groups = [
        {"params": [p for n, p in model.named_parameters() if decays(n, p) == wanted], "weight_decay": decay}
        for wanted, decay in ((True, 0.1), (False, 0.0))
    ]
    return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)


def inputs(vision, rows, text_tokens, device):
    tokens = batch(rows, text_tokens, (vision["image"] // vision["patch"]) ** 2).to(device)
    pixels = torch.arange(rows * 3 * vision["image"] ** 2, dtype=torch.float64)
    images = torch.sin(pixels * 0.37).float().view(rows, 3, vision["image"], vision["image"]).to(device)
    return images, tokens


def train(model, optimizer, images, tokens, precision="float32", places=None):
    """One step; the loss. `model` may be a DistributedDataParallel, or be compiled: then it is given `places`."""
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        generation, contrastive = model(images, tokens) if places is None else model(images, tokens, places)
    total = GENERATION_WEIGHT * generation + CONTRASTIVE_WEIGHT * contrastive
    total.backward()
    optimizer.step()
    with torch.no_grad():
        getattr(model, "module", model).logit_scale.clamp_(0, math.log(100))
    return total.item()


def member(rank, arguments, meeting):
    """One of several processes: its equal part of the rows, DDP over Gloo."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=arguments.processes)
    model, vision, text_tokens, rows = model_of(arguments.model)
    rows = arguments.rows or rows
    if arguments.weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(arguments.weights))
    optimizer = optimizer_of(model)
    model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    own = slice(rank * rows, (rank + 1) * rows)
    images, tokens = (whole[own].contiguous() for whole in inputs(vision, rows * arguments.processes, text_tokens, torch.device("cpu")))
    times, losses = [], []
    for index in range(arguments.warmup + arguments.steps):
        distributed.barrier()
        start = time.perf_counter()
        loss = train(model, optimizer, images, tokens, arguments.precision)
        if index >= arguments.warmup:
            times.append(time.perf_counter() - start)
        # Outside of what is measured: ours knows the loss of all members as a part of its step.
        total = torch.tensor([loss], dtype=torch.float64)
        distributed.all_reduce(total)
        losses.append(total.item() / arguments.processes)
    if rank == 0:
        status = pathlib.Path("/proc/self/status").read_text().split()
        print(json.dumps({"side": "ddp", "rows": rows * arguments.processes, "seconds": times, "losses": losses,
                          "peak_bytes": int(status[status.index("VmHWM:") + 1]) * 1024}), flush=True)
    distributed.barrier()
    # All is measured; taking the group down stands still at times, for longer than anybody waits.
    os._exit(0)


def measure_members(arguments):
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(member, (arguments, f"{folder}/meeting"), nprocs=arguments.processes)


def measure(arguments):
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    device = torch.device(arguments.device)
    model, vision, text_tokens, rows = model_of(arguments.model)
    model, rows = model.to(device), arguments.rows or rows
    if arguments.save_weights:
        from safetensors.torch import save_file

        save_file(model.state_dict(), arguments.save_weights)
        if arguments.steps == 0:
            return
    if arguments.weights:
        from safetensors.torch import load_file

        model.load_state_dict(load_file(arguments.weights))
    optimizer = optimizer_of(model)
    images, tokens = inputs(vision, rows, text_tokens, device)
    trained, places = model, None
    if arguments.compile:
        # The whole step: forward, backward and the update, each one program; a graph that breaks is an error.
        trained, places = torch.compile(model, fullgraph=True), model.places(tokens)
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=True)
        optimizer.step = torch.compile(optimizer.step)
    step = lambda: train(trained, optimizer, images, tokens, arguments.precision, places)
    times, processor_times, losses, faults = [], [], [], 0
    if arguments.profile:
        step(), step()
        with torch.profiler.profile() as profiler:
            step(), step()
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))
        return
    for index in range(arguments.warmup + arguments.steps):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        start, start_processor = time.perf_counter(), time.process_time()
        losses.append(step())
        if device.type == "cuda":
            torch.cuda.synchronize()
        if index >= arguments.warmup:
            times.append(time.perf_counter() - start)
            processor_times.append(time.process_time() - start_processor)
            faults += resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    if arguments.trace:
        activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * (device.type == "cuda")
        with torch.profiler.profile(activities=activities) as profiler:
            losses += [step(), step()]
        profiler.export_chrome_trace(str(arguments.trace))
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        status = pathlib.Path("/proc/self/status").read_text().split()
        peak = int(status[status.index("VmHWM:") + 1]) * 1024
    print(json.dumps({
        "side": "pytorch", "parameters": sum(p.numel() for p in model.parameters()), "rows": rows, "seconds": times,
        "processor_seconds": processor_times, "losses": losses, "peak_bytes": peak, "page_faults_per_step": faults // len(times),
    }))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--golden", type=pathlib.Path)
    parser.add_argument("--model", default="61m", choices=["61m", "tiny", "b16", "l14"])
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="members, each with its own --rows and --threads")
    parser.add_argument("--save-weights", help="write the initial weights there; with --steps 0 nothing else is done")
    parser.add_argument("--weights", help="initial ones, as --save-weights writes them")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compile", action="store_true", help="forward, backward and the update compiled")
    parser.add_argument("--trace", type=pathlib.Path, help="write a trace of two more steps there, in the format of Chrome's")
    arguments = parser.parse_args()
    if arguments.golden:
        golden(arguments.golden)
    elif arguments.processes > 1:
        measure_members(arguments)
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
