"""Options that several commands share, and the small formats in which they are typed."""

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bnnconvert.errors import UsageError

if TYPE_CHECKING:
    from bnnconvert.values.inputs import Inputs, InputSpec
    from bnnconvert.values.steering import Steering


class Precision(StrEnum):
    """What Accelerate calls mixed precision."""

    NO = "no"
    FP16 = "fp16"
    BF16 = "bf16"


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON value on standard output and nothing else there.")]
Compile = Annotated[bool, typer.Option("--compile", help="Compile the student with torch.compile.")]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="A folder (train/CLASS/*.png and test/, IDX files, CIFAR batches), digits, or package.module:factory.",
    ),
]
Factory = Annotated[
    str | None,
    typer.Option(metavar="PKG.MOD:FACTORY", help="Function that builds the network whose state dict the file holds."),
]
Leaf = Annotated[
    list[str] | None,
    typer.Option(metavar="PATH", help="A module to leave whole and float; may be given several times."),
]
Concrete = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE", help="Value of an argument of the model's forward, in JSON; may be given several times."
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page with both graphs, the layers and the training."),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="1,C,H,W",
        help="Input shape with one sample, for example 1,3,32,32; integers below 1000: 1,16:int64:1000. "
        "Once for each input, in order.",
    ),
]
Mean = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Mean per channel in [0, 1]; default: the training set's.")
]
MixedPrecision = Annotated[Precision, typer.Option(help="Precision of the float operations.")]
Std = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Standard deviation per channel; default: the training set's.")
]
Task = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|PKG.MOD:OBJ",
        help="classification, multi-label, regression, segmentation, detection or your own; default: the run's.",
        show_default=False,
    ),
]
TrustPickle = Annotated[
    bool, typer.Option("--trust-pickle", help="Run whatever code the model file holds. Only for files that you trust.")
]
Run = Annotated[
    Path | None,
    typer.Argument(
        metavar="RUN", help="Run directory; default: the newest *.bnn in the current folder.", show_default=False
    ),
]


def inputs_of(texts: list[str] | None) -> "Inputs | None":
    """`1,3,32,32` and `1,16:int64:1000` as inputs.

    Raises: UsageError.
    """
    return tuple(map(_input_of, texts)) if texts else None


def _input_of(text: str) -> "InputSpec":
    sizes, _, kind = text.partition(":")
    dtype, _, below = kind.partition(":")
    try:
        shape = tuple(int(part) for part in sizes.split(","))
    except ValueError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise UsageError(f"--input-shape {text}: is no shape; give whole numbers with commas, for example 1,3,32,32.")
    if shape[0] != 1:
        raise UsageError(
            f"--input-shape {text}: must begin with 1, the batch; for example 1,{','.join(map(str, shape))}."
        )
    from pydantic import ValidationError

    from bnnconvert.values.inputs import InputSpec, InputType

    given = {"shape": shape} | ({"dtype": dtype} if dtype else {}) | ({"below": below} if below else {})
    try:
        return InputSpec.model_validate(given)
    except ValidationError:
        kinds = ", ".join(get_args(InputType))
        what = "is no number that integers stay below" if dtype in kinds.split(", ") else "is no element type"
        raise UsageError(
            f"--input-shape {text}: {(below or dtype)!r} {what}; give one of {kinds}, and for integers 1 or more, as "
            "in 1,16:int64:1000."
        ) from None


def steering_of(leaf: list[str] | None, concrete: list[str] | None) -> "Steering":
    """What `--leaf` and `--concrete` say.

    Raises: UsageError.
    """
    values: dict[str, Any] = {}
    for text in concrete or ():
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise UsageError(f"--concrete {text}: give NAME=VALUE, for example return_features=false.")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    from bnnconvert.values.steering import Steering

    return Steering(leaves=tuple(leaf or ()), concrete=values)


def numbers_of(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.49,0.48,0.45` as numbers.

    Raises: UsageError naming the option.
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{option} {text}: give one number per channel with commas, for example 0.5,0.5,0.5."
        ) from None
