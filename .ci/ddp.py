"""A distributed program of PyTorch, as its users write them: gloo on CPUs, the rendezvous by torchrun's variables. Rank 1 fails in
the first attempt, so that the launcher restarts both."""

import os

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


@record
def main():
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("gloo")
    total = torch.tensor([float(rank + 1)])
    dist.all_reduce(total)
    if attempt == 0 and rank == 1:
        raise RuntimeError("on purpose")
    dist.barrier()
    dist.destroy_process_group()
    assert total.item() == world * (world + 1) / 2
    print(f"rank {rank}: all-reduce of attempt {attempt} is right", flush=True)


main()
