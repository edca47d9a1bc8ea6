"""PyTorch, operator by operator."""

import time
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from bnnconvert.bench.peers.base import Array, Files, LayerTime, Peer, Predict


def original(files: Files, threads: int) -> nn.Module:
    """The float original, with torch on so many threads."""
    torch.set_num_threads(threads)
    return torch.export.load(files.exported).module()


def first_output(result: Any) -> Array:
    """The first tensor of a result."""
    while not isinstance(result, torch.Tensor):
        result = next(iter(result.values() if isinstance(result, dict) else result))
    return result.numpy()


class TorchEager(Peer):
    """PyTorch eager."""

    title = "torch eager fp32"

    def open(self, files: Files, threads: int) -> Predict:
        module = self.module = original(files, threads)

        def predict(*inputs: Array) -> Array:
            with torch.inference_mode():
                return first_output(module(*map(torch.from_numpy, inputs)))

        return predict

    def layers(self, *inputs: Array) -> list[LayerTime]:
        assert isinstance(self.module, GraphModule)
        clock = _Clock(self.module)
        with torch.inference_mode():
            clock.run(*map(torch.from_numpy, inputs))
        return clock.times


class _Clock(Interpreter):
    """Runs a graph and times the operators with weights."""

    WEIGHTED = ("conv", "linear", "addmm")

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.times: list[LayerTime] = []

    def run_node(self, n: Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(n)
        name = str(n.target)
        if n.op == "call_function" and any(word in name for word in self.WEIGHTED):
            path, _ = list((n.meta.get("nn_module_stack") or {"": ("", "")}).values())[-1]
            self.times.append(LayerTime(path, name, time.perf_counter() - start))
        return result
