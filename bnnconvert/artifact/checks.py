"""What must hold for a program and its tensors before anything runs.

No torch here: the shapes of ATen operators are checked by the session, which has it.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bnnconvert.artifact.schema import GOLDEN, MAX_ELEMENTS, MAX_EXTENT, MAX_K, MAX_WINDOW_BITS, Array
from bnnconvert.artifact.signatures import SIGNATURES, mismatch
from bnnconvert.bits import MAX_BYTES, row_bytes
from bnnconvert.errors import ArtifactError
from bnnconvert.values.program import Batch, Constant, Dimension, Node, Program, Value, ValueSpec

Shape = tuple[Dimension, ...]


class Defect(Exception):
    """What is wrong with a node; the caller adds file and node."""


def check_program(program: Program, tensors: Mapping[str, Array], where: str) -> None:
    """Check order, names, operators, arguments, shapes, tensors and sizes.

    Raises: ArtifactError naming file, node and defect.
    """
    known: dict[str, ValueSpec] = {}
    used: set[str] = set()
    for spec in program.inputs:
        _define(spec, known, f"{where}: input {spec.name!r}")
        _check_batch_first(spec, f"{where}: input {spec.name!r}")
    for number, node in enumerate(program.nodes):
        at = f"{where}: node {number} ({node.op}{f' of {node.layer}' if node.layer else ''})"
        if node.op not in SIGNATURES:
            raise ArtifactError(f"{at}: unknown operator; known: {', '.join(sorted(SIGNATURES))}")
        problem = mismatch(node.op, node.arguments)
        if problem is not None:
            raise ArtifactError(f"{at}: it {problem}")
        for reference in node.references():
            if isinstance(reference, Value) and reference.value not in known:
                raise ArtifactError(f"{at}: it reads value {reference.value!r}, which no earlier node gives")
            if isinstance(reference, Constant):
                if reference.tensor not in tensors or reference.tensor.startswith(GOLDEN):
                    raise ArtifactError(f"{at}: it reads tensor {reference.tensor!r}, which the file does not hold")
                used.add(reference.tensor)
        try:
            _check_node(node, known, tensors)
        except Defect as defect:
            raise ArtifactError(f"{at}: {defect}") from None
        for spec in node.outputs:
            _define(spec, known, at)
    for name in program.output.values():
        if name not in known:
            raise ArtifactError(f"{where}: its output reads value {name!r}, which no node gives")
        _check_batch_first(known[name], f"{where}: output {name!r}")
    unused = sorted(set(tensors) - used)
    if unused:
        raise ArtifactError(f"{where}: tensor {unused[0]!r} is read by no node")


def _define(spec: ValueSpec, known: dict[str, ValueSpec], at: str) -> None:
    if spec.name in known:
        raise ArtifactError(f"{at}: value {spec.name!r} is defined twice")
    if spec.elements() > MAX_ELEMENTS:
        raise ArtifactError(f"{at}: value {spec.name!r} has more than {MAX_ELEMENTS} elements for one sample")
    known[spec.name] = spec


def _check_batch_first(spec: ValueSpec, at: str) -> None:
    if not spec.shape or spec.shape[0] != Batch(batch=1) or any(isinstance(d, Batch) for d in spec.shape[1:]):
        raise ArtifactError(f"{at}: its first axis, and no other, must be the samples")


def _check_node(node: Node, known: Mapping[str, ValueSpec], tensors: Mapping[str, Array]) -> None:
    rule = RULES.get(node.op)
    if rule is None:
        return
    dtype, shape = rule(_Arguments(node, known, tensors))
    if len(node.outputs) != 1 or (node.outputs[0].dtype, node.outputs[0].shape) != (dtype, shape):
        raise Defect(f"it declares an output that is not the one {dtype} of shape {_show(shape)} that it gives")


class _Arguments:
    """Typed access to the arguments of one of our own operators."""

    def __init__(self, node: Node, known: Mapping[str, ValueSpec], tensors: Mapping[str, Array]) -> None:
        self.node, self.known, self.tensors = node, known, tensors

    def value(self, name: str, *dtypes: str) -> tuple[str, Shape]:
        argument = self.node.arguments[name]
        if not isinstance(argument, Value):
            raise Defect(f"argument {name!r} must be a value, not a stored tensor")
        spec = self.known[argument.value]
        if spec.dtype not in dtypes or len(spec.shape) < 2:
            raise Defect(
                f"argument {name!r} is {spec.dtype} of shape {_show(spec.shape)}; it must be {' or '.join(dtypes)}"
            )
        return spec.dtype, spec.shape

    def given(self, name: str, *dtypes: str) -> Shape:
        """Shape of a value or a stored tensor."""
        argument, dtype, shape = self.node.arguments[name], "no tensor", tuple[Dimension, ...]()
        if isinstance(argument, Value):
            dtype, shape = self.known[argument.value].dtype, self.known[argument.value].shape
        elif isinstance(argument, Constant):
            dtype, shape = self.tensors[argument.tensor].dtype.name, self.tensors[argument.tensor].shape
        if dtype not in dtypes:
            raise Defect(f"argument {name!r} is {dtype}; it must be {' or '.join(dtypes)}")
        return shape

    def tensor(self, name: str, dtype: str, dims: int) -> Array:
        argument = self.node.arguments[name]
        if not isinstance(argument, Constant):
            raise Defect(f"argument {name!r} must be a stored tensor")
        array = self.tensors[argument.tensor]
        if array.dtype.name != dtype or array.ndim != dims or 0 in array.shape:
            shape = list(array.shape)
            raise Defect(
                f"tensor {argument.tensor!r} is {array.dtype.name} of shape {shape}; it must be {dtype} of {dims} axes"
            )
        return array

    def number(self, name: str, low: int, high: int) -> int:
        argument = self.node.arguments[name]
        if not isinstance(argument, int) or not low <= argument < high:
            raise Defect(f"argument {name!r} is {argument!r}; it must be from {low} to {high - 1}")
        return argument

    def pair(self, name: str, low: int) -> tuple[int, int]:
        argument = self.node.arguments[name]
        if isinstance(argument, tuple) and len(argument) == 2:
            first, second = argument
            if (
                isinstance(first, int)
                and isinstance(second, int)
                and low <= min(first, second) <= max(first, second) < MAX_EXTENT
            ):
                return first, second
        raise Defect(f"argument {name!r} must be two numbers from {low} to {MAX_EXTENT - 1}")


def _encode(a: _Arguments) -> tuple[str, Shape]:
    dtype, shape = a.value("x", "float32", "int32")
    thresholds, start = a.tensor("thresholds", dtype, 3), a.tensor("start", "bool", 2)
    channels = shape[1]
    if thresholds.shape[:2] != start.shape or isinstance(channels, Batch) or start.shape[1] not in (1, channels):
        raise Defect(
            f"thresholds {list(thresholds.shape)} and start {list(start.shape)} do not fit {channels} channels"
        )
    if np.isnan(thresholds).any() or (thresholds[..., 1:] < thresholds[..., :-1]).any():
        raise Defect("its thresholds are not in ascending order")
    return "bool", (shape[0], start.shape[0] * channels, *shape[2:])


def _rows(a: _Arguments, k: int) -> tuple[int, int]:
    """Check packed rows of `k` bits; planes M and outputs O."""
    if not 1 <= k < MAX_K:
        raise Defect(f"rows of {k} bits are not between 1 and {MAX_K - 1}")
    weight = a.tensor("weight", "uint8", 3)
    if weight.shape[2] != row_bytes(k):
        raise Defect(f"its weight has rows of {weight.shape[2]} bytes; {k} bits take {row_bytes(k)}")
    if k % 8 and (weight[..., -1] >> (k % 8)).any():
        raise Defect("bits behind the end of a weight row are set")
    return weight.shape[0], weight.shape[1]


def _conv2d(name: str, given: str, gives: str) -> Callable[[_Arguments], tuple[str, Shape]]:
    def rule(a: _Arguments) -> tuple[str, Shape]:
        _, shape = a.value(name, given)
        groups, channels = a.number("groups", 1, MAX_K), a.number("in_channels", 1, MAX_K)
        kernel, stride, padding, dilation = (
            a.pair(n, int(n != "padding")) for n in ("kernel", "stride", "padding", "dilation")
        )
        if channels % groups or a.node.arguments["pad_bit"] not in ("zero", "one"):
            raise Defect("groups must divide in_channels, and pad_bit must be 'zero' or 'one'")
        k = channels // groups * math.prod(kernel)
        weight_planes, out = _rows(a, k)
        planes, height, width = _planes(shape, 1, channels), shape[2:3], shape[3:]
        if len(shape) != 4 or out % groups or (gives == "float32" and planes != 1):
            raise Defect(
                f"an input of shape {_show(shape)} does not fit {channels} channels, {groups} groups and {out} outputs"
            )
        sizes = [_positions(s, *g) for s, *g in zip((*height, *width), kernel, stride, padding, dilation, strict=True)]
        _bound_work(shape, padding, sizes, k * planes)
        return gives, (shape[0], planes * weight_planes * out, *sizes)

    return rule


def _bound_work(shape: Shape, padding: Sequence[int], sizes: Sequence[int], row: int) -> None:
    """Refuse a convolution that takes far more memory than its input and output, padded or as windows."""
    if math.prod(sizes) * row > MAX_WINDOW_BITS:
        raise Defect(f"its windows hold more than {MAX_WINDOW_BITS} values for one sample")
    padded = (s + 2 * p for s, p in zip(shape[2:], padding, strict=True) if isinstance(s, int))
    if isinstance(shape[1], int) and shape[1] * math.prod(padded) > MAX_ELEMENTS:
        raise Defect(f"its padded input has more than {MAX_ELEMENTS} elements")


def _linear(name: str, given: str, gives: str) -> Callable[[_Arguments], tuple[str, Shape]]:
    def rule(a: _Arguments) -> tuple[str, Shape]:
        _, shape = a.value(name, given)
        features = a.number("in_features", 1, MAX_K)
        weight_planes, out = _rows(a, features)
        planes = _planes(shape, -1, features)
        if gives == "float32" and planes != 1:
            raise Defect(f"an input of shape {_show(shape)} does not fit {features} features")
        return gives, (*shape[:-1], planes * weight_planes * out)

    return rule


def _signed_embedding(a: _Arguments) -> tuple[str, Shape]:
    shape = a.given("indices", "int64", "int32")
    features = a.number("features", 1, MAX_K)
    planes, rows = _rows(a, features)
    scale = a.tensor("scale", "float32", 2)
    if scale.shape != (planes, rows):
        raise Defect(f"a scale of shape {list(scale.shape)} does not fit {planes} planes of {rows} rows")
    return "float32", (*shape, features)


def _quantize(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("x", "float32")
    factor = a.node.arguments["factor"]
    if not isinstance(factor, int | float) or not 0 < factor < math.inf:
        raise Defect(f"argument 'factor' is {factor!r}; it must be a positive number")
    return "int8", shape


def _int8_conv2d(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("x", "int8")
    weight, groups = a.tensor("weight", "int8", 4), a.number("groups", 1, MAX_K)
    stride, padding, dilation = (a.pair(n, int(n != "padding")) for n in ("stride", "padding", "dilation"))
    out, per_group, *kernel = weight.shape
    k = math.prod(weight.shape[1:])
    if len(shape) != 4 or shape[1] != per_group * groups or out % groups or k > MAX_BYTES:
        raise Defect(f"an input of shape {_show(shape)} does not fit a weight of shape {list(weight.shape)}")
    sizes = [_positions(s, *g) for s, *g in zip(shape[2:], kernel, stride, padding, dilation, strict=True)]
    _bound_work(shape, padding, sizes, k)
    return "int32", (shape[0], out, *sizes)


def _int8_linear(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("x", "int8")
    weight = a.tensor("weight", "int8", 2)
    if shape[-1] != weight.shape[1] or weight.shape[1] > MAX_BYTES:
        raise Defect(f"an input of shape {_show(shape)} does not fit a weight of shape {list(weight.shape)}")
    return "int32", (*shape[:-1], weight.shape[0])


def _masked_conv2d(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("x", "float32")
    weight, groups = a.tensor("weight", "float32", 4), a.number("groups", 1, MAX_K)
    stride, padding, dilation = (a.pair(n, int(n != "padding")) for n in ("stride", "padding", "dilation"))
    out, per_group, *kernel = weight.shape
    k = math.prod(weight.shape[1:])
    if len(shape) != 4 or shape[1] != per_group * groups or out % groups or k >= MAX_K:
        raise Defect(f"an input of shape {_show(shape)} does not fit a weight of shape {list(weight.shape)}")
    sizes = [_positions(s, *g) for s, *g in zip(shape[2:], kernel, stride, padding, dilation, strict=True)]
    _bound_work(shape, padding, sizes, k)
    return "float32", _masked(a, (shape[0], out, *sizes))


def _masked_linear(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("x", "float32")
    weight = a.tensor("weight", "float32", 2)
    if len(shape) != 2 or shape[1] != weight.shape[1]:
        raise Defect(f"an input of shape {_show(shape)} does not fit a weight of shape {list(weight.shape)}")
    return "float32", _masked(a, (shape[0], len(weight)))


def _masked(a: _Arguments, out: Shape) -> Shape:
    """Check mask and bias of an output."""
    _, mask = a.value("mask", "bool")
    bias = a.tensor("bias", "float32", 1)
    if mask != out or len(bias) != out[1]:
        raise Defect(f"a mask of shape {_show(mask)} and {len(bias)} biases do not fit an output of {_show(out)}")
    return out


def _binary_attention(a: _Arguments) -> tuple[str, Shape]:
    (*ahead, queries, size), (*ahead_k, keys, size_k), (*ahead_v, values, out) = shapes = [
        a.value(name, "float32")[1] for name in ("query", "key", "value")
    ]
    if not (len(ahead) >= 1 and ahead == ahead_k == ahead_v and size == size_k and keys == values):
        raise Defect(f"queries, keys and values of shapes {', '.join(map(_show, shapes))} do not fit one another")
    if a.node.arguments["mask"] is not None:
        mask, scores = a.given("mask", "float32", "bool"), (*ahead, queries, keys)
        if len(mask) > len(scores) or any(m not in (1, s) for m, s in zip(mask[::-1], scores[::-1], strict=False)):
            raise Defect(f"a mask of shape {_show(mask)} does not fit scores of shape {_show(scores)}")
    if any(isinstance(d, Batch) for d in (queries, size, keys, out)):
        raise Defect("the samples may not be on an axis of the products")
    return "float32", (*ahead, queries, out)


def _affine(a: _Arguments) -> tuple[str, Shape]:
    _, shape = a.value("acc", "int32", "float32")
    scale = a.tensor("scale", "float32", 2)
    if a.node.arguments["bias"] is not None and a.tensor("bias", "float32", 1).shape != scale.shape[1:]:
        raise Defect(f"its bias does not have {scale.shape[1]} elements")
    axis = a.number("axis", -1, 2)
    if axis == 0 or shape[axis] != scale.size:
        raise Defect(f"a scale of shape {list(scale.shape)} does not fit axis {axis} of {_show(shape)}")
    axis %= len(shape)
    return "float32", (*shape[:axis], scale.shape[1], *shape[axis + 1 :])


def _planes(shape: Shape, axis: int, size: int) -> int:
    total = shape[axis]
    if isinstance(total, Batch) or total == 0 or total % size:
        raise Defect(f"axis {axis} of an input of shape {_show(shape)} is not a multiple of {size}")
    return total // size


def _positions(size: Dimension, kernel: int, stride: int, padding: int, dilation: int) -> int:
    if isinstance(size, Batch):
        raise Defect("the samples may not be on an axis of the image")
    count = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if count < 1:
        raise Defect(f"a kernel of {kernel} does not fit {size} pixels")
    return count


def _show(shape: Shape) -> str:
    return str([f"{d.batch}N" if isinstance(d, Batch) else d for d in shape]).replace("'", "")


RULES: Mapping[str, Callable[[_Arguments], tuple[str, Shape]]] = {
    "bnnconvert.encode": _encode,
    "bnnconvert.binary_conv2d": _conv2d("bits", "bool", "int32"),
    "bnnconvert.binary_linear": _linear("bits", "bool", "int32"),
    "bnnconvert.signed_conv2d": _conv2d("x", "float32", "float32"),
    "bnnconvert.signed_linear": _linear("x", "float32", "float32"),
    "bnnconvert.signed_embedding": _signed_embedding,
    "bnnconvert.quantize": _quantize,
    "bnnconvert.int8_conv2d": _int8_conv2d,
    "bnnconvert.int8_linear": _int8_linear,
    "bnnconvert.masked_conv2d": _masked_conv2d,
    "bnnconvert.masked_linear": _masked_linear,
    "bnnconvert.binary_attention": _binary_attention,
    "bnnconvert.affine": _affine,
}
"""Element type and shape that each of our own operators gives, or a Defect."""
