"""torch's DataLoader over the same files: images a second, one line a turn."""

import sys
import time

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

paths, batch, producers, epochs, turns = sys.argv[1].split("\n"), *map(int, sys.argv[2:])


class Images(Dataset):
    def __len__(self):
        return len(paths)

    def __getitem__(self, index):
        with open(paths[index], "rb") as file:
            content = file.read()
        pixels = np.frombuffer(content, np.uint8, 3 * 96 * 96, len(content) - 3 * 96 * 96)
        return torch.from_numpy(pixels.astype(np.float32) * np.float32(1 / 255))


loader = DataLoader(Images(), batch_size=batch, num_workers=producers, persistent_workers=True)
for _ in range(turns + 1):
    total, count, start = 0.0, 0, None
    for _ in range(epochs):
        for images in loader:
            start = start or time.perf_counter()
            total += float(images.sum())
            count += len(images)
    print((count - batch) / (time.perf_counter() - start), flush=True)
