"""Writing: the same bytes for the same student, readable by the safetensors library, no loss on the way back."""

import numpy as np
import pytest
import safetensors
import torch

from bnnconvert.artifact.reader import from_bytes, read
from bnnconvert.artifact.schema import Metadata, Normalisation
from bnnconvert.artifact.writer import all_tensors, to_bytes, write
from bnnconvert.errors import UsageError
from tests.sessions import complete
from tests.students import Block, trace


@pytest.fixture(scope="module")
def artifact():
    torch.manual_seed(0)
    return complete(trace(Block()), torch.randn(2, 3, 8, 8))


def test_same_student_same_bytes():
    contents = []
    for _ in range(2):
        torch.manual_seed(3)
        contents.append(to_bytes(complete(trace(Block()), torch.randn(2, 3, 8, 8))))
    assert contents[0] == contents[1]


def test_nothing_is_lost(artifact):
    metadata = Metadata(
        producer="test 1",
        recipe="xnor",
        recipe_text='name = "ünï" # "sha256":"',
        normalisation=Normalisation(scale="uint8", mean=(0.1, 0.2), std=(1.0, 2.5)),
        classes=("cat", "dög"),
        metrics={"accuracy": 0.875},
    )
    written = type(artifact)(
        artifact.program, artifact.tensors, metadata, artifact.golden_inputs, artifact.golden_outputs
    )
    again = from_bytes(to_bytes(written), "again")
    assert again.program == artifact.program
    assert again.metadata == metadata
    theirs, ours = all_tensors(again), all_tensors(written)
    assert set(theirs) == set(ours)
    for name, array in ours.items():
        assert theirs[name].dtype == array.dtype
        assert np.array_equal(theirs[name], array)
    assert to_bytes(again) == to_bytes(written)


def test_the_safetensors_library_reads_it(artifact, tmp_path):
    path = tmp_path / "a.packed.safetensors"
    write(artifact, path)
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata()["format"] == "bnnconvert.packed"
        for name, array in all_tensors(artifact).items():
            assert np.array_equal(file.get_tensor(name), array)


def test_tensors_are_aligned(artifact):
    again = from_bytes(to_bytes(artifact), "again")
    assert all(a.flags.aligned for a in all_tensors(again).values())


@pytest.mark.parametrize("name", ["missing.safetensors", "."])
def test_no_readable_file(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / name)
