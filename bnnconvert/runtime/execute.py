"""From program nodes to callables.

Our operators run in numpy; those that need float arithmetic run in torch, which is imported only when a program has
such nodes.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from bnnconvert.artifact.schema import Array
from bnnconvert.errors import ArtifactError, UsageError, first_line
from bnnconvert.runtime import packed
from bnnconvert.values.program import Argument, Batch, Constant, DType, Node, NonFinite, Value, ValueSpec

Values = Mapping[str, Array]
Call = Callable[[Values, int], tuple[Array, ...]]
"""Runs one node on the values computed so far, for a number of samples."""

CHECK_BATCH = 3
"""Samples for the shape check: a number that is hardly ever the size of another axis."""


def needs_torch(nodes: Iterable[Node]) -> bool:
    """Whether some node runs in torch."""
    return any(node.op not in NUMPY for node in nodes)


def load_torch(where: str) -> ModuleType:
    """Torch.

    Raises: UsageError where it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UsageError(
            f"{where}: this program has float operators, which run in torch; install it (pip install torch)"
        ) from error
    return torch


def prepare(
    nodes: Sequence[Node], specs: Mapping[str, ValueSpec], tensors: Mapping[str, Array], where: str
) -> list[Call]:
    """One callable per node, weights laid out for use.

    Raises: ArtifactError where torch would not run a node or gives another shape than the program declares.
    """
    torch = load_torch(where) if needs_torch(nodes) else None
    calls: list[Call] = []
    for node in nodes:
        if node.op in NUMPY:
            calls.append(NUMPY[node.op](_Packed(node, tensors)))
            continue
        assert torch is not None
        at = f"{where}: {node.op}{f' of {node.layer}' if node.layer else ''}"
        call = _Torch(torch, node, tensors, at)
        if node.op.startswith("aten."):
            call.check(specs)
        calls.append(call)
    return calls


class _Packed:
    """Access to the arguments of one of our own nodes, all of them checked by the reader."""

    def __init__(self, node: Node, tensors: Mapping[str, Array]) -> None:
        self.node, self.tensors = node, tensors

    def tensor(self, name: str) -> Array:
        argument = self.node.arguments[name]
        assert isinstance(argument, Constant)
        return self.tensors[argument.tensor]

    def value(self, name: str) -> str:
        argument = self.node.arguments[name]
        assert isinstance(argument, Value)
        return argument.value

    def settings(self, *but: str) -> dict[str, Any]:
        return {name: value for name, value in self.node.arguments.items() if name not in but}


def _encode(a: _Packed) -> Call:
    x, thresholds, start = a.value("x"), a.tensor("thresholds"), a.tensor("start")
    return lambda values, _: (packed.encode(values[x], thresholds, start),)


def _affine(a: _Packed) -> Call:
    acc, scale, settings = a.value("acc"), a.tensor("scale"), a.settings("acc", "scale", "bias")
    bias = None if a.node.arguments["bias"] is None else a.tensor("bias")
    return lambda values, _: (packed.affine(values[acc], scale, bias, **settings),)


def _binary_conv2d(a: _Packed) -> Call:
    bits, conv = a.value("bits"), packed.BinaryConv2d(a.tensor("weight"), **a.settings("bits", "weight"))
    return lambda values, _: (conv(values[bits]),)


def _binary_linear(a: _Packed) -> Call:
    bits, linear = a.value("bits"), packed.BinaryLinear(a.tensor("weight"), **a.settings("bits", "weight"))
    return lambda values, _: (linear(values[bits]),)


def _signed_embedding(a: _Packed) -> Call:
    table = packed.SignedEmbedding(a.tensor("weight"), a.tensor("scale"), **a.settings("indices", "weight", "scale"))
    if isinstance(a.node.arguments["indices"], Constant):
        rows = table(a.tensor("indices"))
        return lambda values, _: (rows,)
    indices = a.value("indices")
    return lambda values, _: (table(values[indices]),)


def _quantize(a: _Packed) -> Call:
    x, settings = a.value("x"), a.settings("x")
    return lambda values, _: (packed.quantize(values[x], **settings),)


def _int8_conv2d(a: _Packed) -> Call:
    x, conv = a.value("x"), packed.Int8Conv2d(a.tensor("weight"), **a.settings("x", "weight"))
    return lambda values, _: (conv(values[x]),)


def _int8_linear(a: _Packed) -> Call:
    x, weight = a.value("x"), a.tensor("weight")
    return lambda values, _: (packed.int8_linear(values[x], weight),)


def _masked_conv2d(a: _Packed) -> Call:
    x, mask = a.value("x"), a.value("mask")
    settings = a.settings("x", "mask", "weight", "bias")
    conv = packed.MaskedConv2d(a.tensor("weight"), a.tensor("bias"), **settings)
    return lambda values, _: (conv(values[x], values[mask]),)


def _masked_linear(a: _Packed) -> Call:
    x, mask, weight, bias = a.value("x"), a.value("mask"), a.tensor("weight"), a.tensor("bias")
    return lambda values, _: (packed.masked_linear(values[x], values[mask], weight, bias),)


def _binary_attention(a: _Packed) -> Call:
    q, k, v = (a.value(name) for name in ("query", "key", "value"))
    mask, settings = a.node.arguments["mask"], a.settings("query", "key", "value", "mask")
    stored = a.tensor("mask") if isinstance(mask, Constant) else None

    def attend(values: Values, _: int) -> tuple[Array, ...]:
        added = values[mask.value] if isinstance(mask, Value) else stored
        return (packed.binary_attention(values[q], values[k], values[v], added, **settings),)

    return attend


NUMPY: Mapping[str, Callable[[_Packed], Call]] = {
    "bnnconvert.encode": _encode,
    "bnnconvert.binary_conv2d": _binary_conv2d,
    "bnnconvert.binary_linear": _binary_linear,
    "bnnconvert.signed_embedding": _signed_embedding,
    "bnnconvert.quantize": _quantize,
    "bnnconvert.int8_conv2d": _int8_conv2d,
    "bnnconvert.int8_linear": _int8_linear,
    "bnnconvert.masked_conv2d": _masked_conv2d,
    "bnnconvert.masked_linear": _masked_linear,
    "bnnconvert.binary_attention": _binary_attention,
    "bnnconvert.affine": _affine,
}
"""Operators that run in numpy."""


class _Torch:
    """A node that runs in torch; its constants are converted once."""

    def __init__(self, torch: ModuleType, node: Node, tensors: Mapping[str, Array], at: str) -> None:
        self.torch, self.node, self.at = torch, node, at
        self.constants = {
            r.tensor: torch.from_numpy(tensors[r.tensor].copy()) for r in node.references() if isinstance(r, Constant)
        }
        self.names = node.reads
        self.function = self._signed() if node.op.startswith("bnnconvert.") else self._aten()

    def __call__(self, values: Values, batch: int) -> tuple[Array, ...]:
        given = {name: self.torch.from_numpy(_writable(values[name])) for name in self.names}
        return tuple(r.numpy() for r in self._run(given, self.constants, batch))

    def check(self, specs: Mapping[str, ValueSpec]) -> None:
        """Run the node on tensors without data, so that most of what is wrong with it shows before any work is done."""
        torch = self.torch

        def empty(spec: ValueSpec) -> Any:
            return torch.empty(spec.sized(CHECK_BATCH), dtype=getattr(torch, spec.dtype), device="meta")

        given = {name: empty(specs[name]) for name in self.names}
        self._run(given, {name: tensor.to("meta") for name, tensor in self.constants.items()}, CHECK_BATCH)

    def _run(self, given: Mapping[str, Any], constants: Mapping[str, Any], batch: int) -> tuple[Any, ...]:
        """Results of the node, compared with what the program declares."""
        try:
            with self.torch.no_grad():
                result = self.function(**self._arguments(given, constants, batch))
        except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError) as error:
            reason = first_line(error)[:300]
            raise ArtifactError(
                f"{self.at}: torch does not run it with these arguments ({reason}); look at the values of the input, "
                "or export the model again."
            ) from error
        results = tuple(result) if isinstance(result, list | tuple) else (result,)
        actual = [(str(r.dtype).removeprefix("torch."), tuple(r.shape)) for r in results]
        declared = [(spec.dtype, spec.sized(batch)) for spec in self.node.outputs]
        if actual != declared:
            raise ArtifactError(f"{self.at}: it declares {declared} for {batch} samples and gives {actual}")
        return results

    def _aten(self) -> Callable[..., Any]:
        """The operator itself, but a view of a tensor that lies otherwise in memory than the exporter's is a copy."""
        if self.node.op == "aten.view.default":
            return lambda *, self, size: self.reshape(size)
        _, name, overload = self.node.op.split(".")
        function: Callable[..., Any] = getattr(getattr(self.torch.ops.aten, name), overload)
        return function

    def _signed(self) -> Callable[..., Any]:
        """The reference operators of layers/operators.py, their weights unpacked once."""
        from bnnconvert.layers import operators

        arguments = self.node.arguments
        weight = next(iter(self.constants.values()))
        self.constants = {}
        if self.node.op == "bnnconvert.signed_linear":
            planes = operators.unpack(weight, _integer(arguments["in_features"]))
            return lambda *, x, **_: self.torch.cat([self.torch.nn.functional.linear(x, rows) for rows in planes], -1)
        kernel = arguments["kernel"]
        assert isinstance(kernel, tuple)
        sizes = [_integer(k) for k in kernel]
        filters = operators.unpack_filters(
            weight, _integer(arguments["in_channels"]), sizes, _integer(arguments["groups"])
        )

        def convolve(*, x: Any, in_channels: int, kernel: Any, **settings: Any) -> Any:
            return operators.convolve(x, filters, **settings)

        return convolve

    def _arguments(self, values: Mapping[str, Any], constants: Mapping[str, Any], batch: int) -> dict[str, Any]:
        def resolve(argument: Argument) -> Any:
            match argument:
                case tuple():
                    return [resolve(a) for a in argument]
                case Value():
                    return values[argument.value]
                case Constant():
                    return constants[argument.tensor]
                case Batch():
                    return argument.batch * batch
                case DType():
                    return getattr(self.torch, argument.dtype)
                case NonFinite():
                    return {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}[argument.number]
                case _:
                    return argument

        return {k: resolve(a) for k, a in self.node.arguments.items() if not self._is_own_weight(a)}

    def _is_own_weight(self, argument: Argument) -> bool:
        return self.node.op.startswith("bnnconvert.") and isinstance(argument, Constant)


def _integer(argument: Argument) -> int:
    assert isinstance(argument, int)
    return argument


def _writable(array: Array) -> Array:
    """Torch warns about arrays that it may not write to, although nothing here writes."""
    return array if array.flags.writeable else np.array(array)
