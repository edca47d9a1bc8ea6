"""Deployed graph to program, through torch.export: ATen operators as the model called them, none decomposed.

Sizes that depend on the number of samples are multiples of it (`x.size(0)`, `-1` in a view): each becomes a `Batch`,
so the program holds no size arithmetic and its batch stays free. In-place operators become their functional twins;
what does nothing in evaluation mode is left out. Tensors that the model makes from nothing (coordinates, masks) are
computed here and stored.
"""

import itertools
import math
import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from bnnconvert.artifact.signatures import SIGNATURES, mismatch
from bnnconvert.errors import RefusalError, first_line
from bnnconvert.layers.packed import PackedLayer
from bnnconvert.lower.writes import VIEWS, back, line_of, reads_old
from bnnconvert.values import program as values
from bnnconvert.values.inputs import Example, as_tuple
from bnnconvert.values.program import (
    Argument,
    Batch,
    Constant,
    DType,
    NonFinite,
    Output,
    Program,
    Scalar,
    Value,
    ValueSpec,
)

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Arrays = dict[str, np.ndarray[Any, Any]]

IGNORED = {
    "aten.sym_size.int",
    "aten._assert_tensor_metadata.default",
    "aten._assert_scalar.default",
    "aten.sym_constrain_range_for_size.default",
}
SAME = {"aten.dropout.default", "aten.feature_dropout.default", "aten.alpha_dropout.default", "aten.detach.default"}
SAME |= {"aten.detach_.default", "aten.alias.default", "aten.lift_fresh_copy.default", "aten.dropout_.default"}
MOVES = {"aten.to.device": "aten.to.dtype", "aten.to.dtype_layout": "aten.to.dtype"}
"""What says where a tensor goes says perhaps of which type it is then."""
TWINS = {"aten.zero_.default": "aten.zeros_like.default"}
"""What gives the values of an operator in place under another name than its own."""
COPIES = {"aten.copy_.default", "aten.fill_.Tensor"}
"""What replaces all of a tensor by its second argument."""
PLACES = {"device", "layout", "memory_format", "pin_memory", "non_blocking", "implicit"}
"""Arguments that say where and how a tensor lies, not what it is."""


def lower(deployed: GraphModule, example: Example) -> tuple[Program, Arrays]:
    """Program of a deployed graph and the tensors that it reads.

    `example` is an input, or the inputs, of at least one sample.

    Raises: RefusalError where the graph cannot be exported with a free batch, or calls an operator we do not know.
    """
    exported = _export(deployed, example)
    return _Lowering(exported, deployed).run()


def _export(deployed: GraphModule, example: Example) -> "ExportedProgram":
    # Here, as it takes a second to import and a conversion does without.
    from torch.export import Dim, export

    twos, batch = tuple(torch.cat([x[:1], x[:1]]).cpu() for x in as_tuple(example)), Dim("batch")
    try:
        return export(deployed, twos, dynamic_shapes=tuple({0: batch} for _ in twos), strict=False)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AssertionError) as error:
        raise RefusalError(
            f"export: torch.export cannot follow the model with a free number of samples ({first_line(error)[:300]}); "
            "write shapes with x.size(0) or -1 in place of a fixed batch size"
        ) from error


class _Lowering:
    """One walk over an exported graph."""

    def __init__(self, exported: "ExportedProgram", deployed: GraphModule) -> None:
        self.exported = exported
        self.layers = {path for path, module in deployed.named_modules() if isinstance(module, PackedLayer)}
        self.paths = {path for path, _ in deployed.named_modules()}
        self.refs: dict[Node, Scalar | tuple[Scalar, ...]] = {}
        self.tensors: dict[str, Tensor] = {}
        self.created: dict[Node, Any] = {}
        """What the model makes from nothing."""
        self.inputs: list[ValueSpec] = []
        self.nodes: list[values.Node] = []

    def run(self) -> tuple[Program, Arrays]:
        kinds = {spec.arg.name: spec for spec in self.exported.graph_signature.input_specs}
        for node in self.exported.graph.nodes:
            if node.op == "placeholder":
                self._input(node, kinds[node.name])
            elif node.op == "call_function":
                self._call(node)
            elif node.op != "output":
                raise RefusalError(f"export: the model has a nested graph ({node.name}), which a program cannot hold")
        program = Program(inputs=tuple(self.inputs), nodes=tuple(self.nodes), output=self._output())
        used = {r.tensor for n in self.nodes for r in n.references() if isinstance(r, Constant)}
        return program, {name: _array(name, t) for name, t in sorted(self.tensors.items()) if name in used}

    def _input(self, node: Node, spec: Any) -> None:
        if spec.kind.name == "USER_INPUT":
            self.inputs.append(self._spec(node.name, node.meta["val"], "input"))
            self.refs[node] = Value(value=node.name)
            return
        store = self.exported.constants if spec.target in self.exported.constants else self.exported.state_dict
        self.tensors[spec.target] = store[spec.target]
        self.refs[node] = Constant(tensor=spec.target)

    def _call(self, node: Node) -> None:
        if node.target is operator.getitem:
            source, index = node.args
            if source in self.created:
                self._store(node, self.created[source][index])  # type: ignore[index]
                return
            self.refs[node] = self.refs[source][index]  # type: ignore[index]
            return
        name = str(node.target)
        if isinstance(node.meta.get("val"), torch.SymInt | int) or name in IGNORED or callable_is_symbolic(node.target):
            return
        if name in SAME or (name in MOVES and node.meta["val"].dtype == node.all_input_nodes[0].meta["val"].dtype):
            self.refs[node] = self.refs[node.all_input_nodes[0]]
            return
        if self._is_made_of_nothing(node):
            args, kwargs = map_arg((node.args, node.kwargs), self._known)
            self._store(node, node.target(*args, **kwargs))  # type: ignore[operator]
            return
        op = name.removesuffix(".default") if name.startswith("bnnconvert.") else name
        layer = self._layer(node)
        if name in COPIES:
            self.refs[node] = self._copied(node, layer or node.name)
            self._rename(node, layer or node.name)
            return
        mutated, op = _functional(MOVES.get(op, op))
        if op not in SIGNATURES:
            raise RefusalError(
                f"{layer or node.name}: operator {name} has no place in a packed program yet; keep it out of the model"
            )
        value = node.meta["val"]
        outputs = value if isinstance(value, list | tuple) else (value,)
        names = [node.name] if outputs is not value else [f"{node.name}.{i}" for i in range(len(outputs))]
        specs = tuple(self._spec(n, v, layer or node.name) for n, v in zip(names, outputs, strict=True))
        arguments = self._arguments(node, layer or node.name)
        problem = mismatch(op, arguments)
        if problem is not None:
            raise RefusalError(f"{layer or node.name}: {name} {problem} in a packed program; change the model")
        self.nodes.append(values.Node(op=op, layer=layer, arguments=arguments, outputs=specs))
        refs = tuple(Value(value=n) for n in names)
        self.refs[node] = refs if outputs is value else refs[0]
        if mutated:
            self._rename(node, layer or node.name)

    def _is_made_of_nothing(self, node: Node) -> bool:
        """Whether a call gives the same tensor whatever the model's input and parameters are."""
        assert isinstance(node.target, torch._ops.OpOverload)
        takes_tensors = any("Tensor" in str(a.type) for a in node.target._schema.arguments)
        others = [n for n in node.all_input_nodes if n not in self.created]
        made = not others
        if str(node.target).startswith("bnnconvert."):  # a layer that reads such a tensor has weights besides
            made = all(isinstance(self.refs[n], Constant) for n in others)
        draws = torch.Tag.nondeterministic_seeded in node.target.tags
        in_place = node.target._schema.is_mutable
        return made and bool(node.all_input_nodes or not takes_tensors) and not (draws or in_place)

    def _known(self, node: Node) -> Any:
        """A tensor that is computed here or stored."""
        if node in self.created:
            return self.created[node]
        reference = self.refs[node]
        assert isinstance(reference, Constant)
        return self.tensors[reference.tensor]

    def _store(self, node: Node, value: Any) -> None:
        """Take a computed value; one of several tensors is stored when it is read."""
        self.created[node] = value
        if isinstance(value, Tensor):
            name = f"constant.{node.name}"
            self.tensors[name], self.refs[node] = value, Constant(tensor=name)

    def _copied(self, node: Node, layer: str) -> Scalar:
        """What is copied into a tensor, in its type and shape."""
        into, source = node.args[0].meta["val"], node.args[1].meta["val"]  # type: ignore[union-attr]
        value = self._scalar(node.args[1], layer)
        if source.dtype != into.dtype:
            arguments: dict[str, Argument] = {"self": value, "dtype": DType(dtype=_dtype(into.dtype, layer))}  # type: ignore[arg-type]
            value = self._add("aten.to.dtype", layer, arguments, source.to(into.dtype))
        if source.shape != into.shape:
            size = tuple(_size(d, layer) for d in into.shape)
            value = self._add("aten.expand.default", layer, {"self": value, "size": size}, into)
        return value

    def _rename(self, node: Node, layer: str) -> None:
        """Later readers of a tensor that was changed in place, and of what it is a part of, read the new values."""
        line, value = line_of(node.all_input_nodes[0]), self.refs[node]
        if line[-1].op == "placeholder" or any(str(view.target) not in VIEWS for view in line[:-1]):
            raise RefusalError(
                f"{layer}: {node.target} changes a tensor that is an input, a parameter, or has other names; use the "
                "form that returns a new one"
            )
        late = reads_old(line, node)
        if late is not None:
            raise RefusalError(
                f"{layer}: {node.target} changes a tensor that {self._layer(late) or late.name} reads under another "
                "name afterwards; use the form that returns a new one"
            )
        for view, whole in itertools.pairwise(line):
            self.refs[view] = value
            shape = tuple(_size(d, layer) for d in whole.meta["val"].shape)
            arguments = back(view, self._arguments(view, layer), value, self.refs[whole], shape)
            value = self._add(VIEWS[str(view.target)], layer, arguments, whole.meta["val"])
        self.refs[line[-1]] = value
        for changed in line:
            self.created.pop(changed, None)

    def _add(self, op: str, layer: str, arguments: dict[str, Argument], like: Tensor) -> Value:
        """A node that the model does not have itself."""
        name = f"{op.split('.')[1]}.{len(self.nodes)}"
        self.nodes.append(
            values.Node(op=op, layer=layer, arguments=arguments, outputs=(self._spec(name, like, layer),))
        )
        return Value(value=name)

    def _arguments(self, node: Node, layer: str) -> dict[str, Argument]:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        given = dict(zip((a.name for a in schema), node.args, strict=False)) | node.kwargs
        return {k: self._argument(v, layer) for k, v in given.items() if k not in PLACES}

    def _argument(self, argument: Any, layer: str) -> Argument:
        if isinstance(argument, list | tuple):
            return tuple(self._scalar(a, layer) for a in argument)
        return self._scalar(argument, layer)

    def _scalar(self, argument: Any, layer: str) -> Scalar:
        if isinstance(argument, Node) and argument in self.refs:
            reference = self.refs[argument]
            assert not isinstance(reference, tuple), "lists reach other operators element by element"
            return reference
        if isinstance(argument, Node):
            return _size(argument.meta["val"], layer)
        if isinstance(argument, torch.SymInt):
            return _size(argument, layer)
        if isinstance(argument, float) and not math.isfinite(argument):
            return NonFinite(number="nan" if math.isnan(argument) else "inf" if argument > 0 else "-inf")
        if isinstance(argument, torch.dtype):
            return DType(dtype=_dtype(argument, layer))  # type: ignore[arg-type]
        if argument is None or isinstance(argument, bool | int | float | str):
            return argument
        raise RefusalError(f"{layer}: an argument of type {type(argument).__name__} has no place in a packed program")

    def _spec(self, name: str, value: Any, layer: str) -> ValueSpec:
        if not isinstance(value, Tensor):
            raise RefusalError(f"{layer}: a result of type {type(value).__name__} has no place in a packed program")
        shape = tuple(_size(d, layer) for d in value.shape)
        return ValueSpec(name=name, dtype=_dtype(value.dtype, layer), shape=shape)  # type: ignore[arg-type]

    def _layer(self, node: Node) -> str:
        """Path of the user's module that the node comes from; a packed layer is one module to the user."""
        for path, _ in reversed(list((node.meta.get("nn_module_stack") or {}).values())):
            words = path.split(".")
            outer = (".".join(words[:n]) for n in range(len(words) - 1, 0, -1))
            holder = next((h for h in outer if h in self.layers), None)
            if holder is not None:
                return holder
            if path in self.paths:
                return str(path)
        return ""

    def _output(self) -> Output:
        spec = self.exported.call_spec.out_spec
        results = next(n for n in self.exported.graph.nodes if n.op == "output").args[0]
        leaves = [self.refs[r] if isinstance(r, Node) else r for r in results]
        assert spec is not None
        return _tree(pytree.tree_unflatten(leaves, spec))


def callable_is_symbolic(target: str | Callable[..., Any]) -> bool:
    """Whether a node computes sizes or asserts something about them, rather than tensors."""
    return not isinstance(target, torch._ops.OpOverload)


def _functional(op: str) -> tuple[bool, str]:
    """Whether an operator works in place, and the name of the twin that does not."""
    if op in TWINS:
        return True, TWINS[op]
    space, name, overload = op.split(".") if op.count(".") == 2 else (*op.split("."), "")
    if not name.endswith("_") or space != "aten":
        return False, op
    return True, f"{space}.{name.removesuffix('_')}.{overload}"


def _size(size: Any, layer: str) -> int | Batch:
    """A size as a plain number or a multiple of the number of samples."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    expression = size.node.expr
    symbols = expression.free_symbols
    if not symbols:
        return int(expression)
    times = expression / next(iter(symbols))
    if len(symbols) > 1 or not times.is_Integer or times < 1:
        raise RefusalError(
            f"{layer}: size {expression} is not a multiple of the number of samples; reshape each sample alone"
        )
    return Batch(batch=int(times))


def _dtype(dtype: torch.dtype, layer: str) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in get_args(values.DTypeName):
        raise RefusalError(f"{layer}: element type {name} has no place in a packed program; use float32")
    return name


def _array(name: str, tensor: Tensor) -> np.ndarray[Any, Any]:
    _dtype(tensor.dtype, name)
    return tensor.detach().cpu().contiguous().numpy().copy()  # the deployed graph may share it with the student


def _tree(output: Any) -> Output:
    if isinstance(output, Value):
        return Output(kind="value", value=output.value)
    if output is None:
        return Output(kind="none")
    if isinstance(output, dict) and all(isinstance(k, str | int) for k in output):
        return Output(kind="dict", keys=tuple(output), items=tuple(map(_tree, output.values())))
    if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
        return Output(kind="list" if isinstance(output, list) else "tuple", items=tuple(map(_tree, output)))
    raise RefusalError(
        f"export: the model's output holds a {type(output).__name__}, and a program gives tensors in tuples, lists "
        "and dicts; return one of those"
    )
