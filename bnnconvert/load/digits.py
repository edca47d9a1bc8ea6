"""`digits`: the 1,797 grey images of 8x8 pixels that scikit-learn ships, every fifth of each class held out as test."""

import numpy as np
import torch

from bnnconvert.errors import UsageError
from bnnconvert.load.splits import Splits
from bnnconvert.values.data import Images, Part, split_held_out
from bnnconvert.values.inputs import specs_of

_NAME = "digits"
_TEST_SHARE = 0.2
_SEED = 0


def recognises(spec: str) -> bool:
    """Whether this is the name of the data set; a folder of that name is written `./digits`."""
    return spec == _NAME


def read(spec: str) -> Splits:
    """The digits, 0 to 16 stretched to 0 to 255, in a fixed stratified split.

    Raises: UsageError where scikit-learn is missing.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(f"{spec}: needs scikit-learn; pip install bnnconvert[digits].") from error
    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    whole = Images(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))
    train, test = split_held_out(whole, _TEST_SHARE, _SEED)
    return Splits(_alone(whole, train), _alone(whole, test), tuple(map(str, range(10))), specs_of((1, 1, 8, 8)))


def _alone(whole: Images, part: Part) -> Images:
    """The part as a data set of its own."""
    return Images(*whole.batch(part.indices))
