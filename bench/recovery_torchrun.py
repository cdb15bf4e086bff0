"""A member of `torchrun`'s job in `bench/recovery.py`: DDP over Gloo, the model of `bench/step.py`, a checkpoint every tenth step to go on
from. Writes down when its group stood and when each step ended."""

import argparse
import json
import os
import pathlib
import time

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

import step as plain

EVERY = 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=pathlib.Path, required=True)
    parser.add_argument("--batch", type=int, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank, world, restart = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    log = open(arguments.folder / "steps" / f"{os.getpid()}.jsonl", "a", buffering=1)

    def note(event, step):
        line = {"event": event, "step": step, "time": time.time(), "rank": rank, "restart": restart, "process": os.getpid()}
        log.write(json.dumps(line) + "\n")

    torch.distributed.init_process_group("gloo")
    model, vision, text_tokens, _ = plain.model_of("tiny")
    optimizer = plain.optimizer_of(model)
    checkpoint, first = arguments.folder / "checkpoint.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    model = DistributedDataParallel(model)
    torch.distributed.barrier()
    note("formed", first)
    images, tokens = plain.inputs(vision, arguments.batch // world, text_tokens, torch.device("cpu"))
    for step in range(first, 1_000_000):
        plain.train(model, optimizer, images, tokens)
        note("step", step)
        if (step + 1) % EVERY == 0 and rank == 0:
            state = {"model": model.module.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint.with_suffix(".new"))
            checkpoint.with_suffix(".new").rename(checkpoint)


if __name__ == "__main__":
    main()
