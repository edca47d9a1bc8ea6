"""Load the user's float model: a file that torch wrote, a state dict with its factory, or a factory alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.load.checkpoint import read_checkpoint, read_trusted
from bnnconvert.load.exported import read_exported
from bnnconvert.load.file_kind import recognise
from bnnconvert.load.lift import lift
from bnnconvert.load.shapes import give_shapes
from bnnconvert.load.state_dict import fill, is_state_dict, read_safetensors
from bnnconvert.load.user_code import call_factory, is_factory
from bnnconvert.values.files import file_sha256

# Where training scripts keep the module or its tensors inside a larger checkpoint.
_INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "weights")


@dataclass(frozen=True)
class LoadedModel:
    """The user's module in evaluation mode, on the CPU, in float32."""

    module: nn.Module
    spec: str
    """What the user typed."""
    kind: Literal["pickle", "state-dict", "factory", "exported"]
    sha256: str | None
    """Of the file; none for a factory alone."""


def load_model(
    spec: str | Path,
    *,
    model: str | None = None,
    trust_pickle: bool = False,
    probe: tuple[Tensor, ...] | None = None,
) -> LoadedModel:
    """Load a model from a file or from `package.module:factory`.

    `model` is the factory of the network whose state dict the file holds; a `probe` gives its lazy layers their shapes.
    No code of the file runs, unless `trust_pickle` says that it may.

    Raises: UsageError, RefusalError.
    """
    spec = str(spec)
    if is_factory(spec):
        if model is not None:
            raise UsageError(f"{spec}: is a factory itself; leave out --model {model}, or give the file first.")
        return LoadedModel(_settle(_build(spec), spec, may_be_lazy=True), spec, "factory", None)
    path = Path(spec)
    content = _unwrap(_read(path, trust_pickle=trust_pickle))
    digest = file_sha256(path)
    if isinstance(content, ExportedProgram):
        if model is not None:
            raise UsageError(f"{spec}: already holds a whole network; leave out --model {model}.")
        return LoadedModel(_settle(lift(content, where=spec), spec), spec, "exported", digest)
    if isinstance(content, nn.Module):
        if model is not None:
            raise UsageError(f"{spec}: already holds a whole {type(content).__name__}; leave out --model {model}.")
        return LoadedModel(_settle(content, spec), spec, "pickle", digest)
    if not is_state_dict(content):
        raise UsageError(
            f"{spec}: holds {_describe(content)}, neither a module nor a state dict; save the model with "
            "torch.save(model, 'model.pt')."
        )
    if model is None:
        raise UsageError(
            f"{spec}: holds tensors ({next(iter(content))}, ...) but not the network; add --model "
            "package.module:factory, the function that builds it."
        )
    module = _build(model)
    if probe is not None:
        give_shapes(module, probe)
    fill(module, content, where=spec, factory=model)
    return LoadedModel(_settle(module, model), spec, "state-dict", digest)


def _read(path: Path, *, trust_pickle: bool) -> Any:
    """Content of a model file."""
    kind = recognise(path)
    if kind == "safetensors":
        return read_safetensors(path)
    if kind == "exported":
        return read_exported(path, trusted=trust_pickle)
    if trust_pickle:
        return read_trusted(path)
    return read_checkpoint(path, old=kind == "old checkpoint")


def _unwrap(content: Any) -> Any:
    """The module or state dict inside a training script's checkpoint."""
    if isinstance(content, Mapping) and not is_state_dict(content):
        for key in _INSIDE:
            inner = content.get(key)
            if isinstance(inner, nn.Module | Mapping):
                return _unwrap(inner)
    return content


def _build(spec: str) -> nn.Module:
    """The module that a factory makes."""
    made = call_factory(spec)
    if not isinstance(made, nn.Module):
        raise UsageError(f"{spec}: gave {_describe(made)}; the factory must return a torch.nn.Module.")
    return made


def _settle(module: nn.Module, where: str, *, may_be_lazy: bool = False) -> nn.Module:
    """The module itself, out of a data-parallel wrapper, in evaluation mode, on the CPU, in float32."""
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        module = module.module
    if isinstance(module, torch.jit.ScriptModule):
        raise RefusalError(f"{where}: is a TorchScript module; give the PyTorch module that it was made from.")
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor) and not may_be_lazy:
            raise RefusalError(f"{where}: {name} has no shape yet; run the model once on an input before saving it.")
        if tensor.is_meta:
            raise RefusalError(f"{where}: {name} has no values (it is on the meta device); give a model with weights.")
    return module.cpu().float().eval()


def _describe(found: object) -> str:
    """What something is, with its article, for a sentence."""
    if isinstance(found, Mapping):
        keys = ", ".join(map(repr, list(found)[:4]))
        return f"a dictionary with the keys {keys}" if found else "an empty dictionary"
    name = type(found).__name__
    return f"{'an' if name[:1] in 'aeiouAEIOU' else 'a'} {name}"
