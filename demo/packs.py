"""The trainer's view of a folder of packs: groups of rows on the device, drawn by a mix.

Packs may still be arriving: `refresh` takes in what is new, and new rows are mixed with the ones
that were not drawn yet, so that every row is seen once before any is seen twice.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Mix = dict[str, float]  # group -> share of the rows


class Group:
    """All rows of one name, on the device, drawn without repeats until all were seen."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.ids = self.flags = torch.empty(0)
        self.order = torch.empty(0, dtype=torch.long)

    def add(self, ids: np.ndarray, flags: np.ndarray) -> None:
        new_ids = torch.from_numpy(ids).to(self.device)
        new_flags = torch.from_numpy(flags).to(self.device)
        old = len(self.ids)
        self.ids = torch.cat((self.ids, new_ids)) if old else new_ids
        self.flags = torch.cat((self.flags, new_flags)) if old else new_flags
        fresh = torch.cat((self.order, torch.arange(old, len(self.ids))))
        self.order = fresh[torch.randperm(len(fresh))]

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        while len(self.order) < n:
            self.order = torch.cat((self.order, torch.randperm(len(self.ids))))
        at, self.order = self.order[:n].to(self.device), self.order[n:]
        return self.ids[at].long(), self.flags[at]


class Packs:
    """A folder of packs, watched; groups are named by the start of the file name."""

    def __init__(self, folder: Path, names: set[str], device: str) -> None:
        self.folder = folder
        self.groups = {n: Group(device) for n in sorted(names)}
        self.seen: set[Path] = set()
        while not all(len(g.ids) for g in self.groups.values()):
            self.refresh()
            time.sleep(0.5)

    def refresh(self) -> None:
        """Take in what has arrived."""
        for path in sorted(self.folder.glob("[!.]*.npz")):
            group = next((g for n, g in self.groups.items() if path.name.startswith(n)), None)
            if path in self.seen or group is None:
                continue
            self.seen.add(path)
            with np.load(path) as arrays:
                group.add(arrays["ids"], arrays["flags"])

    def batch(self, mix: Mix, rows: int) -> tuple[Tensor, Tensor, list[str]]:
        """Ids and flags [rows, width], and each row's group."""
        counts = {n: round(rows * share) for n, share in mix.items()}
        counts[next(iter(counts))] += rows - sum(counts.values())
        drawn = [self.groups[n].draw(c) for n, c in counts.items()]
        names = [n for n, c in counts.items() for _ in range(c)]
        return torch.cat([i for i, _ in drawn]), torch.cat([f for _, f in drawn]), names
