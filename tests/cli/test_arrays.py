"""Outputs of any structure into numpy files."""

from pathlib import Path

import numpy as np
import pytest

from bnnconvert.cli import arrays
from bnnconvert.errors import UsageError

A, B = np.zeros((2, 3)), np.ones(2)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        (A, ["output"]),
        ((A,), ["0"]),
        ([A, None, B], ["0", "2"]),
        ({"logits": A, "features": (A, {"deep": B})}, ["logits", "features.0", "features.1.deep"]),
    ],
)
def test_names_are_the_places(output: object, names: list[str]) -> None:
    assert list(arrays.named_leaves(output)) == names


def test_several_outputs_need_npz(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"2 outputs \(a, b\); give a .npz"):
        arrays.write(tmp_path / "y.npy", {"a": A, "b": B})
    assert not list(tmp_path.iterdir())
    arrays.write(tmp_path / "y.npz", {"a": A, "b": B})
    with np.load(tmp_path / "y.npz") as stored:
        np.testing.assert_array_equal(stored["b"], B)
    assert [path.name for path in tmp_path.iterdir()] == ["y.npz"]
