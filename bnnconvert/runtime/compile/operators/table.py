"""How each operator enters the plan: one function, one row."""

import math
from collections.abc import Mapping

from bnnconvert.runtime.compile.compiler import Handler
from bnnconvert.runtime.compile.moves import MOVES
from bnnconvert.runtime.compile.operators.activations import clamp, gelu, leaky_relu, prelu, softmax, unary
from bnnconvert.runtime.compile.operators.affine import affine, batch_norm, layer_norm, negative
from bnnconvert.runtime.compile.operators.arithmetic import arithmetic, reversed_difference
from bnnconvert.runtime.compile.operators.attention import attention, binary_attention
from bnnconvert.runtime.compile.operators.encode import encode, quantize
from bnnconvert.runtime.compile.operators.pools import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    mean,
    pool,
)
from bnnconvert.runtime.compile.operators.products import (
    binary_conv2d,
    binary_linear,
    conv1d,
    conv2d,
    int8_conv2d,
    int8_linear,
    linear,
    masked_conv2d,
    masked_linear,
    signed_conv2d,
    signed_linear,
)
from bnnconvert.runtime.compile.operators.shapes import cat, moving, reordered, reshape, same, stack
from bnnconvert.runtime.compile.plan import Code, Reduce

HANDLERS: Mapping[str, Handler] = {
    "bnnconvert.encode": encode,
    "bnnconvert.binary_conv2d": binary_conv2d,
    "bnnconvert.binary_linear": binary_linear,
    "bnnconvert.signed_conv2d": signed_conv2d,
    "bnnconvert.signed_linear": signed_linear,
    "bnnconvert.quantize": quantize,
    "bnnconvert.int8_conv2d": int8_conv2d,
    "bnnconvert.int8_linear": int8_linear,
    "bnnconvert.masked_conv2d": masked_conv2d,
    "bnnconvert.masked_linear": masked_linear,
    "bnnconvert.affine": affine,
    "aten.conv1d.default": conv1d,
    "aten.conv2d.default": conv2d,
    "aten.conv2d.padding": conv2d,
    "aten.linear.default": linear,
    "aten.batch_norm.default": batch_norm,
    "aten.layer_norm.default": layer_norm,
    "aten.relu.default": clamp(0.0, math.inf),
    "aten.relu6.default": clamp(0.0, 6.0),
    "aten.hardtanh.default": clamp("min_val", "max_val"),
    "aten.clamp.default": clamp("min", "max"),
    "aten.clamp_min.default": clamp("min", math.inf),
    "aten.clamp_max.default": clamp(-math.inf, "max"),
    "aten.prelu.default": prelu,
    "aten.leaky_relu.default": leaky_relu,
    "aten.gelu.default": gelu,
    "aten.exp.default": unary(Code.EXP),
    "aten.sigmoid.default": unary(Code.SIGMOID),
    "aten.tanh.default": unary(Code.TANH),
    "aten.silu.default": unary(Code.SILU),
    "aten.hardsigmoid.default": unary(Code.HARDSIGMOID),
    "aten.hardswish.default": unary(Code.HARDSWISH),
    "aten.sqrt.default": unary(Code.SQRT),
    "aten.reciprocal.default": unary(Code.RECIPROCAL),
    "aten.abs.default": unary(Code.ABS),
    "aten.neg.default": negative,
    "aten.square.default": unary(Code.SQUARE),
    "aten.add.Tensor": arithmetic("add"),
    "aten.add.Scalar": arithmetic("add"),
    "aten.sub.Tensor": arithmetic("sub"),
    "aten.sub.Scalar": arithmetic("sub"),
    "aten.rsub.Scalar": reversed_difference,
    "aten.mul.Tensor": arithmetic("mul"),
    "aten.mul.Scalar": arithmetic("mul"),
    "aten.div.Tensor": arithmetic("div"),
    "aten.div.Scalar": arithmetic("div"),
    "aten.max_pool1d.default": pool(Reduce.MAX, 1),
    "aten.max_pool2d.default": pool(Reduce.MAX),
    "aten.avg_pool1d.default": pool(Reduce.SUM, 1),
    "aten.avg_pool2d.default": pool(Reduce.SUM),
    "aten.adaptive_avg_pool1d.default": adaptive_avg_pool1d,
    "aten.adaptive_avg_pool2d.default": adaptive_avg_pool2d,
    "aten.adaptive_avg_pool3d.default": adaptive_avg_pool3d,
    "aten.mean.dim": mean,
    **{op: moving() for op in MOVES},
    "aten.reshape.default": moving(reshape),
    "aten.view.default": moving(reshape),
    "aten.flatten.using_ints": moving(reshape),
    "aten.unflatten.int": moving(reshape),
    "aten.squeeze.dims": moving(reshape),
    "aten.squeeze.dim": moving(reshape),
    "aten.unsqueeze.default": moving(reshape),
    "aten.permute.default": moving(reordered),
    "aten.transpose.int": moving(reordered),
    "aten.contiguous.default": moving(same),
    "aten.clone.default": moving(same),
    "aten.scaled_dot_product_attention.default": attention,
    "bnnconvert.binary_attention": binary_attention,
    "aten.softmax.int": softmax(logarithm=False),
    "aten.log_softmax.int": softmax(logarithm=True),
    "aten.cat.default": cat,
    "aten.concat.default": cat,
    "aten.stack.default": stack,
}
"""Operators that the engine runs."""
