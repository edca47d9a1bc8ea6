"""Surrogate gradients of sign: one file each, one row each."""

from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.base import Estimator
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.dsq import Dsq
from bnnconvert.estimators.ede import Ede
from bnnconvert.estimators.identity import Identity
from bnnconvert.estimators.sine import Sine
from bnnconvert.estimators.swish_sign import SwishSign
from bnnconvert.estimators.tanh import Tanh
from bnnconvert.estimators.training_aware import TrainingAware
from bnnconvert.estimators.triangle import Triangle

ESTIMATORS: dict[str, type[Estimator]] = {
    "identity": Identity,
    "clip": Clip,
    "approx-sign": ApproxSign,
    "ede": Ede,
    "swish-sign": SwishSign,
    "tanh": Tanh,
    "triangle": Triangle,
    "sine": Sine,
    "dsq": Dsq,
    "training-aware": TrainingAware,
}
