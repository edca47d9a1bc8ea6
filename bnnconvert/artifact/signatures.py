"""The operators that a program may call: name, arguments, types. A hand-written allow-list.

A row reads `name type, name type?, ...`; `?` marks what may be None, and everything after `|` may be left out.
Types: tensor, tensors, slots (tensors, some of them None), int, ints, number, operand (a tensor or number), float,
bool, str, dtype, and the fixed arguments `false` and `zero`. A size (int, ints) may be a multiple of the batch.
The rows of `bnnconvert.*` are our own and FORMAT.md says what they compute. The rows of `aten.*` are operators of
PyTorch under its own names; they act on each sample alone when the program's values have the batch on axis 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bnnconvert.values.program import Argument, Batch, Constant, DType, NonFinite, Scalar, Value


@dataclass(frozen=True)
class Parameter:
    """One argument of an operator."""

    type: str
    may_be_none: bool
    may_be_absent: bool


Signature = Mapping[str, Parameter]

_MAP2D = (
    "weight tensor, in_channels int, kernel ints, stride ints, padding ints, dilation ints, groups int, pad_bit str"
)
_CONV = "input tensor, weight tensor | bias tensor?, stride ints, padding ints, dilation ints, groups int"
_CONV_SAME = "input tensor, weight tensor | bias tensor?, stride ints, padding str, dilation ints, groups int"
_UNCONV = (
    "input tensor, weight tensor"
    " | bias tensor?, stride ints, padding ints, output_padding ints, groups int, dilation ints"
)
_MAX = "self tensor, kernel_size ints | stride ints, padding ints, dilation ints, ceil_mode bool"
_AVG1 = "self tensor, kernel_size ints | stride ints, padding ints, ceil_mode bool, count_include_pad bool"
_AVG = f"{_AVG1}, divisor_override int?"
_SIZE = "self tensor, output_size ints"
_UNARY = "self tensor"
_TWO = "self tensor, other tensor"
_PAIR = "self tensor, other operand"
_ALPHA = "self tensor, other operand | alpha number"
_SCALAR = "self tensor, other number"
_REDUCE = "self tensor, dim ints? | keepdim bool, dtype dtype?"
_NORM = "weight tensor?, bias tensor?, eps float"
_STATISTICS = "weight tensor?, bias tensor?, running_mean tensor?, running_var tensor?"
_SCALES = "input tensor, output_size ints?, scale_factors numbers?"
_ALIGNED = "input tensor, output_size ints?, align_corners bool, scale_factors numbers?"

_OURS = {
    "bnnconvert.encode": "x tensor, thresholds tensor, start tensor",
    "bnnconvert.binary_conv2d": f"bits tensor, {_MAP2D}",
    "bnnconvert.binary_linear": "bits tensor, weight tensor, in_features int",
    "bnnconvert.signed_conv2d": f"x tensor, {_MAP2D}",
    "bnnconvert.signed_linear": "x tensor, weight tensor, in_features int",
    "bnnconvert.signed_embedding": "indices tensor, weight tensor, scale tensor, features int",
    "bnnconvert.quantize": "x tensor, factor float",
    "bnnconvert.int8_conv2d": "x tensor, weight tensor, stride ints, padding ints, dilation ints, groups int",
    "bnnconvert.int8_linear": "x tensor, weight tensor",
    "bnnconvert.masked_conv2d": "x tensor, mask tensor, weight tensor, bias tensor, stride ints, padding ints,"
    " dilation ints, groups int",
    "bnnconvert.masked_linear": "x tensor, mask tensor, weight tensor, bias tensor",
    "bnnconvert.binary_attention": "query tensor, key tensor, value tensor, mask tensor?, scale float, both bool",
    "bnnconvert.affine": "acc tensor, scale tensor, bias tensor?, axis int",
}

_WEIGHTED = {
    "aten.conv1d.default": _CONV,
    "aten.conv2d.default": _CONV,
    "aten.conv3d.default": _CONV,
    "aten.conv1d.padding": _CONV_SAME,
    "aten.conv2d.padding": _CONV_SAME,
    "aten.conv3d.padding": _CONV_SAME,
    "aten.conv_transpose1d.default": _UNCONV,
    "aten.conv_transpose2d.input": _UNCONV,
    "aten.conv_transpose3d.input": _UNCONV,
    "aten.linear.default": "input tensor, weight tensor | bias tensor?",
    "aten.matmul.default": _TWO,
    "aten.bmm.default": "self tensor, mat2 tensor",
    "aten.mm.default": "self tensor, mat2 tensor",
    "aten.addmm.default": "self tensor, mat1 tensor, mat2 tensor | beta number, alpha number",
    "aten.embedding.default": "weight tensor, indices tensor | padding_idx int",
    "aten.scaled_dot_product_attention.default": "query tensor, key tensor, value tensor"
    " | attn_mask tensor?, dropout_p zero, is_causal bool, scale float?, enable_gqa bool",
}

_NORMS = {
    "aten.batch_norm.default": f"input tensor, {_STATISTICS}, training false, momentum float, eps float,"
    " cudnn_enabled bool",
    "aten.instance_norm.default": f"input tensor, {_STATISTICS}, use_input_stats bool, momentum float, eps float,"
    " cudnn_enabled bool",
    "aten.layer_norm.default": f"input tensor, normalized_shape ints | {_NORM}, cudnn_enable bool",
    "aten.group_norm.default": f"input tensor, num_groups int | {_NORM}, cudnn_enabled bool",
    "aten.rms_norm.default": "input tensor, normalized_shape ints | weight tensor?, eps float?",
}

_ACTIVATIONS = {
    "aten.relu.default": _UNARY,
    "aten.relu6.default": _UNARY,
    "aten.hardtanh.default": "self tensor | min_val number, max_val number",
    "aten.leaky_relu.default": "self tensor | negative_slope number",
    "aten.prelu.default": "self tensor, weight tensor",
    "aten.elu.default": "self tensor | alpha number, scale number, input_scale number",
    "aten.celu.default": "self tensor | alpha number",
    "aten.selu.default": _UNARY,
    "aten.gelu.default": "self tensor | approximate str",
    "aten.silu.default": _UNARY,
    "aten.mish.default": _UNARY,
    "aten.hardswish.default": _UNARY,
    "aten.hardsigmoid.default": _UNARY,
    "aten.sigmoid.default": _UNARY,
    "aten.log_sigmoid.default": _UNARY,
    "aten.tanh.default": _UNARY,
    "aten.softplus.default": "self tensor | beta number, threshold number",
    "aten.softmax.int": "self tensor, dim int | dtype dtype?",
    "aten.log_softmax.int": "self tensor, dim int | dtype dtype?",
    "aten.clamp.default": "self tensor | min number?, max number?",
    "aten.clamp_min.default": "self tensor, min number",
    "aten.clamp_max.default": "self tensor, max number",
    "aten.threshold.default": "self tensor, threshold number, value number",
}

_POOLS = {
    "aten.max_pool1d.default": _MAX,
    "aten.max_pool2d.default": _MAX,
    "aten.max_pool3d.default": _MAX,
    "aten.max_pool2d_with_indices.default": _MAX,
    "aten.avg_pool1d.default": _AVG1,
    "aten.avg_pool2d.default": _AVG,
    "aten.avg_pool3d.default": _AVG,
    "aten.adaptive_avg_pool1d.default": _SIZE,
    "aten.adaptive_avg_pool2d.default": _SIZE,
    "aten.adaptive_avg_pool3d.default": _SIZE,
    "aten.adaptive_max_pool1d.default": _SIZE,
    "aten.adaptive_max_pool2d.default": _SIZE,
    "aten.adaptive_max_pool3d.default": _SIZE,
    "aten.upsample_nearest1d.vec": _SCALES,
    "aten.upsample_nearest2d.vec": _SCALES,
    "aten.upsample_nearest3d.vec": _SCALES,
    "aten.upsample_linear1d.vec": _ALIGNED,
    "aten.upsample_bilinear2d.vec": _ALIGNED,
    "aten.upsample_bicubic2d.vec": _ALIGNED,
    "aten.upsample_trilinear3d.vec": _ALIGNED,
    "aten.grid_sampler.default": "input tensor, grid tensor, interpolation_mode int, padding_mode int,"
    " align_corners bool",
}

_SHAPES = {
    "aten.view.default": "self tensor, size ints",
    "aten.reshape.default": "self tensor, shape ints",
    "aten.flatten.using_ints": "self tensor | start_dim int, end_dim int",
    "aten.unflatten.int": "self tensor, dim int, sizes ints",
    "aten.permute.default": "self tensor, dims ints",
    "aten.transpose.int": "self tensor, dim0 int, dim1 int",
    "aten.swapaxes.default": "self tensor, axis0 int, axis1 int",
    "aten.swapdims.default": "self tensor, dim0 int, dim1 int",
    "aten.squeeze.dim": "self tensor, dim int",
    "aten.squeeze.dims": "self tensor, dim ints",
    "aten.unsqueeze.default": "self tensor, dim int",
    "aten.expand.default": "self tensor, size ints",
    "aten.repeat.default": "self tensor, repeats ints",
    "aten.contiguous.default": _UNARY,
    "aten.clone.default": _UNARY,
    "aten.cat.default": "tensors tensors | dim int",
    "aten.concat.default": "tensors tensors | dim int",
    "aten.stack.default": "tensors tensors | dim int",
    "aten.chunk.default": "self tensor, chunks int | dim int",
    "aten.split.Tensor": "self tensor, split_size int | dim int",
    "aten.split.sizes": "self tensor, split_size ints | dim int",
    "aten.split_with_sizes.default": "self tensor, split_sizes ints | dim int",
    "aten.tensor_split.sections": "self tensor, sections int | dim int",
    "aten.tensor_split.indices": "self tensor, indices ints | dim int",
    "aten.unbind.int": "self tensor | dim int",
    "aten.slice.Tensor": "self tensor | dim int, start int?, end int?, step int",
    "aten.select.int": "self tensor, dim int, index int",
    "aten.slice_scatter.default": "self tensor, src tensor | dim int, start int?, end int?, step int",
    "aten.select_scatter.default": "self tensor, src tensor, dim int, index int",
    "aten.narrow.default": "self tensor, dim int, start int, length int",
    "aten.flip.default": "self tensor, dims ints",
    "aten.roll.default": "self tensor, shifts ints | dims ints",
    "aten.pad.default": "self tensor, pad ints | mode str, value float?",
    "aten.constant_pad_nd.default": "self tensor, pad ints | value number",
    "aten.channel_shuffle.default": "self tensor, groups int",
    "aten.pixel_shuffle.default": "self tensor, upscale_factor int",
    "aten.pixel_unshuffle.default": "self tensor, downscale_factor int",
    "aten.unfold.default": "self tensor, dimension int, size int, step int",
    "aten.im2col.default": "self tensor, kernel_size ints, dilation ints, padding ints, stride ints",
    "aten.col2im.default": "self tensor, output_size ints, kernel_size ints, dilation ints, padding ints, stride ints",
    "aten.t.default": _UNARY,
    "aten.movedim.int": "self tensor, source int, destination int",
    "aten.movedim.intlist": "self tensor, source ints, destination ints",
    "aten.broadcast_to.default": "self tensor, size ints",
    "aten.view_as.default": _TWO,
    "aten.reshape_as.default": _TWO,
    "aten.expand_as.default": _TWO,
    "aten.repeat_interleave.self_int": "self tensor, repeats int | dim int?, output_size int?",
    "aten.tile.default": "self tensor, dims ints",
    "aten.index.Tensor": "self tensor, indices slots",
    "aten.index_put.default": "self tensor, indices slots, values tensor | accumulate bool",
    "aten.index_select.default": "self tensor, dim int, index tensor",
    "aten.gather.default": "self tensor, dim int, index tensor",
    "aten.tril.default": "self tensor | diagonal int",
    "aten.triu.default": "self tensor | diagonal int",
    "aten.to.dtype": "self tensor, dtype dtype | copy bool",
    "aten._to_copy.default": "self tensor | dtype dtype?",
    "aten.type_as.default": _TWO,
}

_CREATED = {
    "aten.zeros.default": "size ints | dtype dtype?",
    "aten.ones.default": "size ints | dtype dtype?",
    "aten.full.default": "size ints, fill_value number | dtype dtype?",
    "aten.new_zeros.default": "self tensor, size ints | dtype dtype?",
    "aten.new_ones.default": "self tensor, size ints | dtype dtype?",
    "aten.new_full.default": "self tensor, size ints, fill_value number | dtype dtype?",
    "aten.zeros_like.default": "self tensor | dtype dtype?",
    "aten.ones_like.default": "self tensor | dtype dtype?",
    "aten.full_like.default": "self tensor, fill_value number | dtype dtype?",
    "aten.arange.default": "end number | dtype dtype?",
}

_ARITHMETIC = {
    "aten.add.Tensor": _ALPHA,
    "aten.add.Scalar": "self tensor, other number | alpha number",
    "aten.sub.Tensor": _ALPHA,
    "aten.sub.Scalar": "self tensor, other number | alpha number",
    "aten.rsub.Scalar": "self tensor, other number | alpha number",
    "aten.mul.Tensor": _PAIR,
    "aten.mul.Scalar": _SCALAR,
    "aten.div.Tensor": _PAIR,
    "aten.div.Scalar": _SCALAR,
    "aten.subtract.Tensor": _ALPHA,
    "aten.multiply.Tensor": _PAIR,
    "aten.divide.Tensor": _PAIR,
    "aten.true_divide.Tensor": _PAIR,
    "aten.remainder.Scalar": _SCALAR,
    "aten.lerp.Scalar": "self tensor, end tensor, weight number",
    "aten.baddbmm.default": "self tensor, batch1 tensor, batch2 tensor | beta number, alpha number",
    "aten.addcmul.default": "self tensor, tensor1 tensor, tensor2 tensor | value number",
    "aten.einsum.default": "equation str, tensors tensors",
    "aten.masked_fill.Scalar": "self tensor, mask tensor, value number",
    "aten.logical_not.default": _UNARY,
    "aten.logical_and.default": _TWO,
    "aten.logical_or.default": _TWO,
    "aten.bitwise_not.default": _UNARY,
    "aten.bitwise_and.Tensor": _TWO,
    "aten.bitwise_or.Tensor": _TWO,
    "aten.bitwise_xor.Tensor": _TWO,
    "aten.logical_xor.default": _TWO,
    "aten.eq.Scalar": _SCALAR,
    "aten.ne.Scalar": _SCALAR,
    "aten.eq.Tensor": _PAIR,
    "aten.ne.Tensor": _PAIR,
    "aten.sin.default": _UNARY,
    "aten.cos.default": _UNARY,
    "aten.glu.default": "self tensor | dim int",
    "aten.neg.default": _UNARY,
    "aten.abs.default": _UNARY,
    "aten.sign.default": _UNARY,
    "aten.exp.default": _UNARY,
    "aten.log.default": _UNARY,
    "aten.sqrt.default": _UNARY,
    "aten.rsqrt.default": _UNARY,
    "aten.reciprocal.default": _UNARY,
    "aten.square.default": _UNARY,
    "aten.erf.default": _UNARY,
    "aten.floor.default": _UNARY,
    "aten.ceil.default": _UNARY,
    "aten.trunc.default": _UNARY,
    "aten.log1p.default": _UNARY,
    "aten.log2.default": _UNARY,
    "aten.expm1.default": _UNARY,
    "aten.round.default": _UNARY,
    "aten.pow.Tensor_Scalar": "self tensor, exponent number",
    "aten.maximum.default": _TWO,
    "aten.minimum.default": _TWO,
    "aten.where.self": "condition tensor, self tensor, other tensor",
    "aten.ge.Scalar": _SCALAR,
    "aten.gt.Scalar": _SCALAR,
    "aten.le.Scalar": _SCALAR,
    "aten.lt.Scalar": _SCALAR,
    "aten.ge.Tensor": _PAIR,
    "aten.gt.Tensor": _PAIR,
    "aten.le.Tensor": _PAIR,
    "aten.lt.Tensor": _PAIR,
    "aten.mean.dim": _REDUCE,
    "aten.sum.dim_IntList": _REDUCE,
    "aten.amax.default": "self tensor | dim ints, keepdim bool",
    "aten.amin.default": "self tensor | dim ints, keepdim bool",
    "aten.argmin.default": "self tensor | dim int?, keepdim bool",
    "aten.logsumexp.default": "self tensor, dim ints | keepdim bool",
    "aten.prod.dim_int": "self tensor, dim int | keepdim bool, dtype dtype?",
    "aten.topk.default": "self tensor, k int | dim int, largest bool, sorted bool",
    "aten.argmax.default": "self tensor | dim int?, keepdim bool",
    "aten.max.dim": "self tensor, dim int | keepdim bool",
    "aten.min.dim": "self tensor, dim int | keepdim bool",
    "aten.norm.ScalarOpt_dim": "self tensor, p number?, dim ints | keepdim bool",
    "aten.var.correction": "self tensor | dim ints?, correction number?, keepdim bool",
    "aten.std.correction": "self tensor | dim ints?, correction number?, keepdim bool",
    "aten.linalg_vector_norm.default": "self tensor | ord number, dim ints?, keepdim bool, dtype dtype?",
    "aten.cumsum.default": "self tensor, dim int | dtype dtype?",
}


def _parse(row: str) -> Signature:
    needed, _, optional = row.partition("|")
    parameters = {}
    for part, absent in ((needed, False), (optional, True)):
        for field in filter(None, (f.strip() for f in part.split(","))):
            name, kind = field.split()
            parameters[name] = Parameter(kind.removesuffix("?"), kind.endswith("?"), absent)
    return parameters


SIGNATURES: Mapping[str, Signature] = {
    op: _parse(row)
    for rows in (_OURS, _WEIGHTED, _NORMS, _ACTIVATIONS, _POOLS, _SHAPES, _CREATED, _ARITHMETIC)
    for op, row in rows.items()
}
"""Every operator by name."""


FIXED: Mapping[str, bool | float] = {"false": False, "zero": 0.0}
"""Arguments with which an operator neither changes a tensor nor draws random numbers."""


def mismatch(op: str, arguments: Mapping[str, Argument]) -> str | None:
    """What is wrong with the arguments of a known operator, or None."""
    signature = SIGNATURES[op]
    for name, argument in arguments.items():
        if name not in signature:
            return f"has no argument {name!r}"
        parameter = signature[name]
        if not (_is(argument, parameter.type) or (argument is None and parameter.may_be_none)):
            return f"needs {parameter.type} for argument {name!r}"
    missing = [n for n, p in signature.items() if not p.may_be_absent and n not in arguments]
    return f"lacks argument {missing[0]!r}" if missing else None


def _is(argument: Argument, kind: str) -> bool:
    if kind.endswith("s"):
        return isinstance(argument, tuple) and all(_is_scalar(a, kind[:-1]) for a in argument)
    return not isinstance(argument, tuple) and _is_scalar(argument, kind)


def _is_scalar(argument: Scalar, kind: str) -> bool:
    if kind in FIXED:
        return type(argument) in (bool, float) and argument == FIXED[kind]
    if kind == "bool" or isinstance(argument, bool):
        return isinstance(argument, bool) and kind in ("bool", "number", "operand")
    types: dict[str, tuple[type, ...]] = {
        "tensor": (Value, Constant),
        "slot": (Value, Constant, type(None)),
        "int": (int, Batch),
        "number": (int, float, NonFinite),
        "float": (int, float, NonFinite),
        "operand": (Value, Constant, int, float, NonFinite),
        "str": (str,),
        "dtype": (DType,),
    }
    return isinstance(argument, types[kind])
