"""Forms in which models come: outputs in classes of the user's, layers that get their shapes from the first input."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnnconvert
from bnnconvert import Session, pipeline
from bnnconvert.errors import RefusalError, UsageError
from bnnconvert.tasks import CLASSIFICATION
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of


@dataclass
class Result:
    """A data class."""

    logits: Tensor
    features: Tensor


class Pair(NamedTuple):
    """A named tuple."""

    logits: Tensor
    features: Tensor


class Net(nn.Module):
    """Three layers; `decides` makes the code look at a shape, which only tracing along the example can follow."""

    def __init__(self, form: Any, *, decides: bool = False) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.form, self.decides = form, decides

    def forward(self, x: Tensor) -> Any:
        y = self.two(self.one(x).relu()).relu()
        if self.decides and y.shape[1] > 4:
            y = y * 2
        return self.form(logits=self.three(y), features=y)


X = torch.randn(5, 4)


@pytest.mark.parametrize("decides", [False, True])
@pytest.mark.parametrize("form", [Result, Pair, dict])
def test_a_class_of_the_user_s_stays_in_the_student_and_is_a_dictionary_in_the_file(
    form: Any, decides: bool, tmp_path: Path
) -> None:
    student = bnnconvert.convert(Net(form, decides=decides), "xnor", input_shape=(1, 4))
    output = student.model.eval()(X)
    assert isinstance(output, form)
    bnnconvert.export(student, tmp_path / "net.packed.safetensors")
    found = Session(tmp_path / "net.packed.safetensors").run(X.numpy())
    assert list(found) == ["logits", "features"]
    expected = CLASSIFICATION.output(output)
    np.testing.assert_allclose(found["logits"], expected.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_data_class_trains() -> None:
    x = torch.randint(0, 255, (200, 1, 2, 2), dtype=torch.uint8)
    images = Images(x, (x[:, 0, 0, 0] > 127).long())
    data = Data(images, images, None, specs_of((1, 1, 2, 2)), "uint8", (0.5,), (0.25,), "made")
    net = nn.Sequential(nn.Flatten(), Net(Result))
    student = bnnconvert.convert(net, "bwn", input_shape=(1, 1, 2, 2))
    report = bnnconvert.finetune(student, data, epochs=1, batch_size=20)
    assert report.epochs == 1


def lazy() -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.LazyConv2d(8, 3), nn.Flatten(), nn.LazyLinear(2)
    )


def test_lazy_layers_get_their_shapes_from_the_input_that_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = pipeline.convert_model("tests.pipeline.test_forms:lazy", "xnor", input_shape=(1, 3, 8, 8))
    assert [p.facts.weight_shape for p in made.plan.layers] == [(8, 3, 3, 3), (8, 8, 3, 3), (2, 128)]
    x, opened = torch.randn(2, 3, 8, 8), pipeline.open_run()
    with torch.no_grad():
        assert torch.equal(opened.model.eval()(x), made.model.eval()(x))
        assert torch.equal(opened.teacher(x), made.teacher(x))


def test_lazy_layers_without_an_input_are_refused() -> None:
    with pytest.raises(UsageError, match=r"first input.*--input-shape"):
        bnnconvert.convert(lazy(), "xnor")
    with pytest.raises(UsageError, match=r"does not accept.*--input-shape"):
        bnnconvert.convert(lazy(), "xnor", input_shape=(1, 3))


def test_a_file_with_lazy_layers_has_no_weights(tmp_path: Path) -> None:
    torch.save(lazy(), tmp_path / "model.pt")
    with pytest.raises(RefusalError, match="has no shape yet"):
        pipeline.convert_model(str(tmp_path / "model.pt"), "xnor", trust_pickle=True, input_shape=(1, 3, 8, 8))
