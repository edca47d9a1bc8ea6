"""What a model takes: shape, element type and range of each of its inputs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bnnconvert.errors import UsageError, first_line

Example = Tensor | tuple[Tensor, ...]
"""The input of a model, or its inputs in order; samples on the first axis."""


InputType = Literal["float32", "int64", "int32", "uint8", "bool"]


class InputSpec(BaseModel):
    """One input, with one sample.

    Shapes: shape (1, ...).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    shape: tuple[int, ...]
    dtype: InputType = "float32"
    below: Annotated[int, Field(ge=1)] | None = None
    """Integers are from 0 to before this."""

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """Random values: standard normal, or integers of equal chance."""
        shape = (samples, *self.shape[1:])
        if self.dtype == "float32":
            return torch.randn(shape, generator=generator)
        return torch.randint(self.below or 2, shape, generator=generator).to(getattr(torch, self.dtype))


Inputs = tuple[InputSpec, ...]
Shapes = Sequence[int] | Sequence[Sequence[int]] | Sequence[InputSpec]
"""A shape with one sample, or one for each input."""


def specs_of(shapes: Shapes) -> Inputs:
    """Inputs of these shapes, numbers where nothing else is said."""
    each: Sequence[Any] = [shapes] if isinstance(shapes[0], int) else shapes
    return tuple(s if isinstance(s, InputSpec) else InputSpec(shape=(1, *s[1:])) for s in each)


def specs_of_example(example: Example) -> Inputs:
    """Inputs like these tensors; integers may be as large as the largest here."""
    return tuple(map(_spec_of, as_tuple(example)))


def described(inputs: Inputs) -> list[dict[str, Any]]:
    """The inputs as plain data."""
    return [spec.model_dump(mode="json") for spec in inputs]


def as_tuple(example: Example) -> tuple[Tensor, ...]:
    """The inputs, one by one."""
    return example if isinstance(example, tuple) else (example,)


def samples_in(example: Example) -> int:
    """How many samples there are."""
    return len(as_tuple(example)[0])


def alone(example: Example, what: str) -> Tensor:
    """The input of a model that has one.

    Raises: UsageError where there are several, which `what` is not made for.
    """
    if isinstance(example, Tensor):
        return example
    raise UsageError(f"{what} is for models of one input, and this one takes {len(example)}.")


def given_as(example: Example | list[Tensor], change: Callable[[Tensor], Tensor]) -> Example:
    """Each tensor of what a model takes, changed; loaders make lists of tuples."""
    return change(example) if isinstance(example, Tensor) else tuple(map(change, example))


def run_on(model: nn.Module, example: Example) -> Any:
    """Output of a model for its input or inputs."""
    return model(*as_tuple(example))


def run_example(module: nn.Module, example: tuple[Tensor, ...], concrete: Mapping[str, Any] | None = None) -> Any:
    """Output of `module` on the example input, and on what is given besides by name.

    Raises: UsageError if the module rejects it.
    """
    try:
        with torch.no_grad():
            return module(*example, **(concrete or {}))
    except Exception as error:  # a user's forward may reject a wrong shape in any way
        shapes = ", ".join(str(tuple(x.shape)) for x in example)
        raise UsageError(
            f"{type(module).__name__} does not accept an input of shape {shapes} ({first_line(error)}); "
            "give the right one with --input-shape, once for each input."
        ) from error


def dtype_of(tensor: Tensor) -> InputType:
    """Element type of an input, all floating point being float32 here."""
    return "float32" if tensor.is_floating_point() else cast(InputType, str(tensor.dtype).removeprefix("torch."))


def _spec_of(tensor: Tensor) -> InputSpec:
    has_range = not (tensor.is_floating_point() or tensor.dtype == torch.bool) and tensor.numel() > 0
    below = int(tensor.max()) + 1 if has_range else None
    return InputSpec(shape=(1, *tensor.shape[1:]), dtype=dtype_of(tensor), below=below)
