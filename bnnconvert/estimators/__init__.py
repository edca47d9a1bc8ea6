"""Surrogate gradients of sign: one file each, one row each."""

from bnnconvert.estimators.approx_sign import ApproxSign
from bnnconvert.estimators.base import Estimator
from bnnconvert.estimators.clip import Clip
from bnnconvert.estimators.ede import Ede
from bnnconvert.estimators.identity import Identity

ESTIMATORS: dict[str, type[Estimator]] = {
    "identity": Identity,
    "clip": Clip,
    "approx-sign": ApproxSign,
    "ede": Ede,
}
