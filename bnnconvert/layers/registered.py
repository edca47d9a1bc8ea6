"""How our operators become those of torch: by name, with a schema from their annotations and a form without values.

torch.library.custom_op does more, and a call of what it makes imports torch's compiler, which takes seconds.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])
NAMESPACE = "bnnconvert"
_LIBRARY: Any = torch.library.Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def operator(function: F) -> F:
    """The operator of a function that changes none of its arguments, under the function's own name."""
    name = function.__name__
    _LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()))
    _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
    return cast(F, getattr(getattr(torch.ops, NAMESPACE), name).default)


def without_values(*operators: Callable[..., Any]) -> Callable[[F], F]:
    """Say what operators give for tensors without values."""

    def register(function: F) -> F:
        for made in operators:
            torch.library.register_fake(cast(Any, made).name(), function)
        return function

    return register
