"""The allow-list against torch's own schemas: it cannot promise an argument that the operator does not take."""

import pytest
import torch

from bnnconvert.artifact.checks import RULES
from bnnconvert.artifact.signatures import SIGNATURES
from bnnconvert.layers import operators  # noqa: F401  (registers the operators)

PLACES = {"device", "layout", "memory_format", "pin_memory", "non_blocking", "implicit"}
UNUSED = {"scale_grad_by_freq", "sparse", "sparse_grad", "path"}
KINDS = {
    "tensor": "Tensor",
    "tensors": "List[Tensor]",
    "slots": "List[Optional[Tensor]]",
    "operand": "Tensor",
    "int": "int",
    "ints": "List[int]",
    "number": "number",
    "numbers": "List[float]",
    "float": "float",
    "zero": "float",
    "bool": "bool",
    "false": "bool",
    "str": "str",
    "dtype": "int",
}


@pytest.mark.parametrize("op", SIGNATURES)
def test_row_agrees_with_torch(op):
    space, name, *overload = op.split(".")
    operator = getattr(getattr(getattr(torch.ops, space), name), overload[0] if overload else "default")
    schema = {a.name: a for a in operator._schema.arguments}
    assert set(schema) - set(SIGNATURES[op]) <= PLACES | UNUSED
    for argument, parameter in SIGNATURES[op].items():
        assert schema[argument].has_default_value() == parameter.may_be_absent, argument
        kind = KINDS[parameter.type]
        assert str(schema[argument].type) == (f"Optional[{kind}]" if parameter.may_be_none else kind), argument
    assert not operator._schema.is_mutable


def test_every_operator_of_ours_has_a_shape_rule():
    assert set(RULES) == {op for op in SIGNATURES if op.startswith("bnnconvert.")}
