"""The program: the deploy graph as data. Flat, typed, in single assignment form, with no Python and no torch in it.

Nodes stand in execution order; a value is named once and used only after that. The number of samples stays free:
a dimension is an integer or a multiple of it. Everything here turns into JSON and back without loss.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DTypeName = Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]
Name = Annotated[str, Field(min_length=1, max_length=512)]


class Record(BaseModel):
    """Base of all parts: frozen, no unknown keys, no conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Batch(Record):
    """A multiple of the number of samples."""

    batch: Annotated[int, Field(ge=1, lt=2**31)]


Dimension = Annotated[int, Field(ge=0, lt=2**31)] | Batch


class ValueSpec(Record):
    """Name, element type and shape of a value."""

    name: Name
    dtype: DTypeName
    shape: Annotated[tuple[Dimension, ...], Field(max_length=16)]

    def sized(self, batch: int) -> tuple[int, ...]:
        """Shape for a given number of samples."""
        return tuple(d.batch * batch if isinstance(d, Batch) else d for d in self.shape)

    def elements(self) -> int:
        """Number of elements for one sample."""
        return math.prod(self.sized(1))


class Value(Record):
    """Argument: a value of an earlier node, or an input of the program."""

    value: Name


class Constant(Record):
    """Argument: a stored tensor."""

    tensor: Name


class DType(Record):
    """Argument: an element type."""

    dtype: DTypeName


class NonFinite(Record):
    """Argument: a number that JSON cannot say."""

    number: Literal["inf", "-inf", "nan"]


Scalar = None | bool | int | float | str | Value | Constant | Batch | DType | NonFinite
Argument = Scalar | Annotated[tuple[Scalar, ...], Field(max_length=4096)]


class Node(Record):
    """One operation; `layer` is the path of the user's module that it comes from, where there is one."""

    op: Name
    layer: str = ""
    arguments: dict[str, Argument]
    outputs: Annotated[tuple[ValueSpec, ...], Field(min_length=1)]

    def references(self) -> Iterator[Value | Constant]:
        """Values and tensors that the node reads, in the order of its arguments."""
        for argument in self.arguments.values():
            for scalar in argument if isinstance(argument, tuple) else (argument,):
                if isinstance(scalar, Value | Constant):
                    yield scalar

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """Names of the values that it reads; asked for far more often than anything else."""
        return tuple(r.value for r in self.references() if isinstance(r, Value))


class Output(Record):
    """How values form the model's output: one value, nothing, or a tuple, list or dict of outputs."""

    kind: Literal["value", "none", "tuple", "list", "dict"]
    value: Name | None = None
    keys: tuple[str | int, ...] = ()
    items: tuple["Output", ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "Output":
        if (self.kind == "value") != (self.value is not None):
            raise ValueError("an output of kind `value`, and no other, names a value")
        if self.items and self.kind in ("value", "none"):
            raise ValueError(f"an output of kind `{self.kind}` has no items")
        if len(self.keys) != (len(self.items) if self.kind == "dict" else 0) or len(set(self.keys)) != len(self.keys):
            raise ValueError("a dict, and nothing else, has one distinct key per item")
        return self

    def values(self) -> Iterator[str]:
        """Names of the values, left to right."""
        if self.value is not None:
            yield self.value
        for item in self.items:
            yield from item.values()


class Program(Record):
    """A whole network."""

    inputs: Annotated[tuple[ValueSpec, ...], Field(min_length=1, max_length=64)]
    nodes: Annotated[tuple[Node, ...], Field(max_length=65536)]
    output: Output

    def to_json(self) -> str:
        """The same program always gives the same text."""
        return self.model_dump_json(exclude_defaults=True)

    def specs(self) -> dict[str, ValueSpec]:
        """Every value by name."""
        return {spec.name: spec for spec in (*self.inputs, *(s for node in self.nodes for s in node.outputs))}
