"""A packed file as a module of torch, to stand in a model where the float part stood."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bnnconvert.runtime.session import Session


class PackedModule(nn.Module):
    """Runs a packed file on tensors; it has no parameters and gives no gradient.

    Raises: UsageError, ArtifactError.
    """

    def __init__(self, path: str | Path, *, threads: int = 1) -> None:
        super().__init__()
        self.session = Session(path, threads=threads)

    def forward(self, *inputs: Tensor) -> Any:
        """The file's output, structured as the part structured it, on the CPU."""
        made = self.session.run(*(x.detach().cpu().numpy() for x in inputs))
        return pytree.tree_map(torch.from_numpy, made)
