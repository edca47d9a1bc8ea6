from typing import Annotated, Any

import pytest
from pydantic import Field

from bnnconvert.errors import UsageError
from bnnconvert.values.recipe import Named
from bnnconvert.values.tables import build_row, look_up


class Row:
    def __init__(
        self,
        size: int,
        *,
        rate: Annotated[float, Field(gt=0)] = 0.5,
        pair: tuple[int, int] = (1, 2),
        at: list[str] | None = None,
    ) -> None:
        self.made = (size, rate, pair, at)


class Bare:
    pass


def function(*, factor: float = 1.0) -> float:
    return factor


TABLE: dict[str, Any] = {"row": Row, "bare": Bare, "function": function}


def build(name: str, **options: Any) -> Any:
    return build_row(TABLE, Named.model_validate({"name": name} | options), where="layers[0]", what="row", size=3)


def test_options_and_fixed_arguments_make_the_object() -> None:
    assert build("row", rate=2, pair=[3, 4], at=["a"]).made == (3, 2.0, (3, 4), ["a"])
    assert build("row").made == (3, 0.5, (1, 2), None)


def test_fixed_arguments_that_a_row_does_not_take_are_left_out() -> None:
    assert isinstance(build("bare"), Bare)
    assert build("function", factor=2.5) == 2.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rw", {}, r"layers\[0\]: unknown row 'rw'; did you mean 'row'"),
        (
            "row",
            {"rte": 1.0},
            r"layers\[0\]: row 'row' has no option 'rte'; did you mean 'rate'\? Known: at, pair, rate",
        ),
        ("row", {"size": 1}, "has no option 'size'"),
        ("row", {"rate": 0}, "option 'rate' is 0: .* greater than 0"),
        ("row", {"rate": "1"}, "option 'rate' is '1': .* valid number"),
        ("row", {"pair": [1]}, "option 'pair' is .1.: "),
        ("bare", {"x": 1}, "has no option 'x'; Known: none"),
    ],
)
def test_wrong_options_are_named_with_their_place(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(name, **options)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(UsageError, match="row 'row' needs the option 'size'"):
        build_row(TABLE, Named(name="row"), where="here", what="row")


def test_look_up_finds_and_names() -> None:
    assert look_up({"a": 1}, "a", where="here", what="letter") == 1
    with pytest.raises(UsageError, match=r"here: unknown letter 'b'; .*Known: a\."):
        look_up({"a": 1}, "b", where="here", what="letter")
