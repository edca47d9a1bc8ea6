"""From the flat graph of an exported program back to modules at the user's own paths.

Where an operator reads a module's parameters and nothing but them, the module comes back: convolution, linear, batch
norm, layer norm. Operators that have a twin in torch.nn.functional become calls of that, which tracing turns into
modules as it does with any model. The rest stays as it is called.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from bnnconvert.errors import RefusalError
from bnnconvert.graph import set_module
from bnnconvert.values.inputs import InputSpec, dtype_of

_CONVOLUTIONS: dict[str, type[nn.Module]] = {
    "aten.conv1d": nn.Conv1d,
    "aten.conv2d": nn.Conv2d,
    "aten.conv3d": nn.Conv3d,
    "aten.conv_transpose1d": nn.ConvTranspose1d,
    "aten.conv_transpose2d": nn.ConvTranspose2d,
    "aten.conv_transpose3d": nn.ConvTranspose3d,
}
_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "aten.relu": F.relu,
    "aten.relu_": F.relu,
    "aten.gelu": F.gelu,
    "aten.silu": F.silu,
    "aten.silu_": F.silu,
    "aten.elu": F.elu,
    "aten.hardswish": F.hardswish,
    "aten.hardswish_": F.hardswish,
    "aten.hardtanh": F.hardtanh,
    "aten.hardtanh_": F.hardtanh,
    "aten.leaky_relu": F.leaky_relu,
    "aten.leaky_relu_": F.leaky_relu,
    "aten.sigmoid": torch.sigmoid,
    "aten.tanh": torch.tanh,
    "aten.max_pool1d": F.max_pool1d,
    "aten.avg_pool1d": F.avg_pool1d,
    "aten.adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "aten.max_pool2d": F.max_pool2d,
    "aten.avg_pool2d": F.avg_pool2d,
    "aten.adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "aten.mean": torch.mean,
    "aten.flatten": torch.flatten,
    "aten.dropout": F.dropout,
    "aten.dropout_": F.dropout,
    "aten.add": operator.add,
    "aten.add_": operator.add,
}
"""Twins that take the same arguments in the same order; in-place forms become ordinary ones, as in tracing."""
_SILENT = ("aten._assert", "aten.sym_constrain", "aten._check")


def lift(exported: ExportedProgram, *, where: str) -> nn.Module:
    """The module of an exported program, its parameters and buffers at their own paths, its input's shape in `meta`.

    Raises: RefusalError for what has no module form, and for a program of one number of samples.
    """
    return _Lift(exported, where).run()


class _Lift:
    def __init__(self, exported: ExportedProgram, where: str) -> None:
        self.exported, self.where = exported, where
        self.graph, self.root = Graph(), nn.Module()
        self.made: dict[Node, Any] = {}
        self.tensors: dict[Node, str] = {}
        """Paths of parameters and buffers."""
        self.inputs: list[InputSpec | None] = []
        """None where a size besides the samples is free."""

    def run(self) -> GraphModule:
        """The whole graph over the modules."""
        specs = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self._input(node, specs[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op == "output":
                self._output(node)
            else:
                raise RefusalError(f"{self.where}: {node.name} is a nested graph; export a model without branches.")
        made = GraphModule(self.root, self.graph, class_name="Exported")
        known = [spec for spec in self.inputs if spec is not None]
        made.meta["inputs"] = tuple(known) if len(known) == len(self.inputs) else None
        made.eval()
        return made

    def _input(self, node: Node, spec: Any) -> None:
        if spec.kind == InputKind.USER_INPUT:
            value = node.meta["val"]
            shape = value.shape
            if isinstance(shape[0], int):
                raise RefusalError(
                    f"{self.where}: was exported for {shape[0]} samples and no other number; export "
                    "it with dynamic_shapes={0: torch.export.Dim('batch')} for its input."
                )
            is_fixed = all(isinstance(size, int) for size in shape[1:])
            self.inputs.append(InputSpec(shape=(1, *shape[1:]), dtype=dtype_of(value)) if is_fixed else None)
            self.made[node] = self.graph.placeholder(node.name)
            return
        self.tensors[node] = spec.target
        store = self.exported.constants if spec.target in self.exported.constants else self.exported.state_dict
        owner, _, leaf = spec.target.rpartition(".")
        holder, tensor = _module_at(self.root, owner), store[spec.target]
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor, persistent=spec.target in self.exported.state_dict)

    def _call(self, node: Node) -> None:
        name = str(node.target).rpartition(".")[0] if isinstance(node.target, torch._ops.OpOverload) else ""
        if name.startswith(_SILENT):
            return
        module = self._module(node, name)
        if module is not None and self._place(*module):
            path, _ = module
            self.made[node] = self.graph.call_module(path, (self._argument(node.args[0]),))
        else:
            args, kwargs = map_arg((node.args, node.kwargs), self._argument)
            assert callable(node.target)
            is_scaled_sum = name.startswith("aten.add") and bool(kwargs)
            target = node.target if is_scaled_sum else _FUNCTIONS.get(name, node.target)
            if target is F.hardtanh and args[1:] == (0.0, 6.0):  # what ReLU6 is exported as
                target, args = F.relu6, args[:1]
            self.made[node] = self.graph.call_function(target, args, kwargs)
        stack = (node.meta.get("nn_module_stack") or {}).values()
        paths = [path for path, _ in stack if path and isinstance(path, str)]
        self.made[node].meta["nn_module_stack"] = {path: (path, None) for path in paths}

    def _argument(self, node: Any) -> Any:
        if node in self.tensors and node not in self.made:
            self.made[node] = self.graph.get_attr(self.tensors[node])
        return self.made[node] if isinstance(node, Node) else node

    def _output(self, node: Node) -> None:
        results = [self._argument(leaf) if isinstance(leaf, Node) else leaf for leaf in node.args[0]]  # type: ignore[union-attr]
        spec = self.exported.call_spec.out_spec
        assert spec is not None
        self.graph.output(pytree.tree_unflatten(results, spec))

    # Modules.

    def _module(self, node: Node, name: str) -> tuple[str, nn.Module] | None:
        """The module that a call was, and its path; None where it was none, or reads other tensors."""
        if name in _CONVOLUTIONS:
            return self._convolution(node, _CONVOLUTIONS[name])
        if name == "aten.linear":
            return self._linear(node)
        if name == "aten.batch_norm":
            return self._batch_norm(node)
        if name == "aten.layer_norm":
            return self._layer_norm(node)
        if name == "aten.prelu":
            return self._prelu(node)
        return None

    def _owned(self, tensors: dict[str, Any]) -> tuple[str, dict[str, Tensor | None]] | None:
        """Path and tensors of the one module that has all of these under these names."""
        owner = None
        for name, node in tensors.items():
            if node is None:
                continue
            path = self.tensors.get(node)
            if path is None or path.rpartition(".")[2] != name or owner not in (None, path.rpartition(".")[0]):
                return None
            owner = path.rpartition(".")[0]
        if not owner:
            return None
        holder = self.root.get_submodule(owner)
        others = {name for name, _ in holder.named_parameters(recurse=False)} - tensors.keys()
        if others or any(True for _ in holder.children()):  # the user's own module, which does more than this call
            return None
        return owner, {name: None if node is None else getattr(holder, name) for name, node in tensors.items()}

    def _place(self, path: str, module: nn.Module) -> bool:
        """Put the module where its tensors are; a second call finds it there, unless it has other settings."""
        holder = self.root.get_submodule(path)
        if type(holder) is not nn.Module:
            return repr(holder) == repr(module)
        for name, buffer in holder.named_buffers(recurse=False):
            if name not in dict(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer)
        set_module(self.root, path, module.eval())
        return True

    def _convolution(self, node: Node, kind: type[nn.Module]) -> tuple[str, nn.Module] | None:
        given = _bound(node)
        owned = self._owned({"weight": given["weight"], "bias": given["bias"]})
        if owned is None or isinstance(given["padding"], str):
            return None
        path, tensors = owned
        weight, groups = tensors["weight"], given["groups"]
        assert weight is not None
        settings = {name: tuple(given[name]) for name in ("stride", "padding", "dilation")}
        channels = weight.shape[1] * groups, weight.shape[0]
        if "output_padding" in given:  # transposed, and so are the weight's first axes
            channels = weight.shape[0], weight.shape[1] * groups
            settings["output_padding"] = tuple(given["output_padding"])
        made: Any = kind(*channels, tuple(weight.shape[2:]), **settings, groups=groups, bias=False, device="meta")
        made.weight, made.bias = weight, tensors["bias"]
        return path, made

    def _linear(self, node: Node) -> tuple[str, nn.Module] | None:
        given = _bound(node)
        owned = self._owned({"weight": given["weight"], "bias": given["bias"]})
        if owned is None:
            return None
        path, tensors = owned
        weight = tensors["weight"]
        assert weight is not None
        made: Any = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        made.weight, made.bias = weight, tensors["bias"]
        return path, made

    def _batch_norm(self, node: Node) -> tuple[str, nn.Module] | None:
        given = _bound(node)
        names = ("weight", "bias", "running_mean", "running_var")
        if given["training"]:
            raise RefusalError(f"{self.where}: was exported in training mode; call model.eval() and export it again.")
        owned = self._owned({name: given[name] for name in names})
        rank = len(node.args[0].meta["val"].shape)  # type: ignore[union-attr]
        if owned is None or given["running_mean"] is None or rank not in _NORMS:
            return None
        path, tensors = owned
        mean = tensors["running_mean"]
        assert mean is not None
        made: Any = _NORMS[rank](len(mean), given["eps"], given["momentum"], affine=False)
        made.affine = tensors["weight"] is not None
        for name in names:
            setattr(made, name, tensors[name])
        return path, made

    def _layer_norm(self, node: Node) -> tuple[str, nn.Module] | None:
        given = _bound(node)
        owned = self._owned({"weight": given["weight"], "bias": given["bias"]})
        if owned is None or given["weight"] is None:
            return None
        path, tensors = owned
        made: Any = nn.LayerNorm(given["normalized_shape"], given["eps"], elementwise_affine=False)
        made.elementwise_affine, made.weight, made.bias = True, tensors["weight"], tensors["bias"]
        return path, made

    def _prelu(self, node: Node) -> tuple[str, nn.Module] | None:
        owned = self._owned({"weight": node.args[1]})
        if owned is None:
            return None
        path, tensors = owned
        weight = tensors["weight"]
        assert weight is not None
        made: Any = nn.PReLU(len(weight))
        made.weight = weight
        return path, made


def _bound(node: Node) -> dict[str, Any]:
    """Arguments by name, defaults included."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    values = {argument.name: argument.default_value for argument in schema}
    return values | dict(zip(values, node.args, strict=False)) | node.kwargs


def _module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at a path, made on the way where there is none."""
    for name in path.split(".") if path else ():
        if not hasattr(root, name):
            root.add_module(name, nn.Module())
        root = getattr(root, name)
    return root
