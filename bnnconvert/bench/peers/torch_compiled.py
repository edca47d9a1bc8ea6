"""PyTorch, compiled by TorchInductor."""

import torch

from bnnconvert.bench.peers.base import Array, Files, Peer, Predict
from bnnconvert.bench.peers.torch_eager import first_output, original


class TorchCompiled(Peer):
    """PyTorch compiled."""

    title = "torch compiled fp32"

    def open(self, files: Files, threads: int) -> Predict:
        module = torch.compile(original(files, threads), options={"freezing": True})

        def predict(*inputs: Array) -> Array:
            with torch.no_grad():
                return first_output(module(*map(torch.from_numpy, inputs)))

        return predict
