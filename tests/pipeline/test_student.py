"""What a student is calibrated on."""

import torch

from bnnconvert.pipeline.student import calibration_batches
from bnnconvert.values.data import Data, Images
from bnnconvert.values.inputs import specs_of


def test_calibration_batches_mix_the_classes_of_a_set_that_comes_class_by_class() -> None:
    # Pixels say the class, so a batch's variance says how mixed it is.
    labels = torch.arange(1000) // 100
    images = (labels * 25).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    part = Images(images, labels)
    data = Data(part, part, None, specs_of((1, 1, 8, 8)), "uint8", (0.0,), (1.0,), "classes")
    batches = list(calibration_batches(data))
    assert sum(map(len, batches)) == 512
    whole = torch.cat(batches).var()
    assert all(abs(batch.var() / whole - 1) < 0.35 for batch in batches)
    assert all(torch.equal(a, b) for a, b in zip(batches, calibration_batches(data), strict=True))
