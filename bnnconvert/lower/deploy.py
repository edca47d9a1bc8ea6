"""Student to deployed graph: every binary layer becomes encode, dot, affine and its gain; then the folds run.

The deployed graph is a copy on the CPU in evaluation mode; the student is not touched. Its modules keep the user's
paths, a packed layer being a holder at the path of the layer that it replaces.
"""

import dataclasses
from typing import Any

import torch
from torch.fx import GraphModule, Node

from bnnconvert.errors import RefusalError
from bnnconvert.graph import PASS_THROUGH, copy_sharing, free_path, input_of, module_of, set_module, stored, tidy
from bnnconvert.layers.base import BinaryLayer
from bnnconvert.layers.deployable import Deployable
from bnnconvert.layers.linear import BinaryLinear
from bnnconvert.layers.packed import Encode, PackedLayer, packed_layer
from bnnconvert.lower.folds.table import FOLDS
from bnnconvert.shapes import propagate_shapes
from bnnconvert.values.inputs import Example, as_tuple
from bnnconvert.values.outputs import as_plain


@torch.no_grad()
def deploy(student: GraphModule, example: Example) -> GraphModule:
    """Deployed form of `student`; `example` is an input, or the inputs, of at least one sample, for shapes only."""
    # No fold writes into a parameter.
    kept = (p for p in student.parameters() if p.device.type == "cpu")
    deployed = copy_sharing(student, kept).cpu().eval()
    _plain_output(deployed)
    propagate_shapes(deployed, *(x.detach().cpu() for x in as_tuple(example)))
    expand(deployed)
    for fold in FOLDS.values():
        for site in fold.find(deployed):
            fold.apply(deployed, site)
    tidy(deployed)
    return deployed


def _plain_output(deployed: GraphModule) -> None:
    """Return the fields of a data class or named tuple as a dictionary: a packed file knows no classes of the user."""
    output = next(node for node in deployed.graph.nodes if node.op == "output")
    made = output.args[0]
    kind: Any = made.target if isinstance(made, Node) else None
    if isinstance(made, Node) and (dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")):
        names = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields
        made = dict(zip(names, made.args, strict=False)) | made.kwargs
    output.args = (as_plain(made),)


def expand(deployed: GraphModule) -> None:
    """Replace each binary layer by its packed modules and drop what does nothing in evaluation mode."""
    _keep_what_is_read(deployed)
    modules = {node: module_of(deployed, node) for node in deployed.graph.nodes}
    packed: dict[str, PackedLayer] = {}
    for node, module in modules.items():
        path = str(node.target)
        if isinstance(module, PASS_THROUGH):
            node.replace_all_uses_with(input_of(node))
            deployed.graph.erase_node(node)
        elif isinstance(module, Deployable):
            set_module(deployed, path, module.deployed())
        elif isinstance(module, BinaryLayer):
            if path not in packed:  # a layer that is called twice is packed once
                packed[path] = packed_layer(module, path)
                set_module(deployed, path, packed[path])
            _check_planes(node, module, packed[path])
            _call_packed(deployed, node, packed[path])
    deployed.recompile()


def _keep_what_is_read(deployed: GraphModule) -> None:
    """Give a tensor of a binary layer that other code reads as well a place of its own."""
    for node in deployed.graph.nodes:
        owner = str(node.target).rpartition(".")[0] if node.op == "get_attr" else ""
        if owner and isinstance(deployed.get_submodule(owner), BinaryLayer):
            path = free_path(deployed, str(node.target).replace(".", "_"))
            deployed.register_buffer(path, stored(deployed, str(node.target)).detach(), persistent=False)
            node.target = path


def _call_packed(deployed: GraphModule, node: Node, packed: PackedLayer) -> None:
    source = value = input_of(node)
    with deployed.graph.inserting_before(node):
        for name, _ in packed.named_children():
            inputs = (source, value) if name == "gained" else (value,)
            value = deployed.graph.call_module(f"{node.target}.{name}", inputs)
            value.meta = {"shape": (source if name == "encode" else node).meta["shape"]}
    node.replace_all_uses_with(value)
    deployed.graph.erase_node(node)


def _check_planes(node: Node, layer: BinaryLayer, packed: PackedLayer) -> None:
    """Several input planes share the channel axis; a linear layer reduces that axis in two dimensions only."""
    shape = input_of(node).meta["shape"]
    encode = getattr(packed, "encode", None)
    if isinstance(layer, BinaryLinear) and isinstance(encode, Encode) and encode.start.shape[0] > 1 and len(shape) != 2:
        raise RefusalError(
            f"{node.target}: several input planes are packed for inputs (N, features) only, and this layer's has "
            f"{len(shape)} dimensions; choose a one-bit input binarizer for it"
        )


def tensor_bytes(deployed: GraphModule) -> int:
    """Bytes of the tensors that a deployed graph stores: those of the modules it calls, and attributes it reads."""
    tensors: dict[int, torch.Tensor] = {}
    for node in deployed.graph.nodes:
        if node.op == "get_attr":
            value = stored(deployed, str(node.target))
            tensors[id(value)] = value
        elif node.op == "call_module":
            state = deployed.get_submodule(str(node.target)).state_dict(keep_vars=True)
            tensors |= {id(t): t for name, t in state.items() if not name.endswith("num_batches_tracked")}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def deploy_bytes(student: GraphModule, example: Example) -> int:
    """Tensor bytes of the artifact of `student`, golden input and output not counted, without writing it."""
    return tensor_bytes(deploy(student, example))
