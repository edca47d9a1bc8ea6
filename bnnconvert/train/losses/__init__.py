"""Losses: one file each, one row each."""

from bnnconvert.train.losses.admm import Admm
from bnnconvert.train.losses.attention_match import AttentionMatch
from bnnconvert.train.losses.base import Loss, Outputs
from bnnconvert.train.losses.clip_level import ClipLevel
from bnnconvert.train.losses.cross_entropy import CrossEntropy
from bnnconvert.train.losses.distill import Distill
from bnnconvert.train.losses.distribution import Distribution
from bnnconvert.train.losses.feature_match import FeatureMatch
from bnnconvert.train.losses.lipschitz import Lipschitz
from bnnconvert.train.losses.mutual import Mutual
from bnnconvert.train.losses.rad import Rad
from bnnconvert.train.losses.rotation_margin import RotationMargin
from bnnconvert.train.losses.scale_regularizer import ScaleRegularizer
from bnnconvert.train.losses.sine_regularizer import SineRegularizer

LOSSES: dict[str, type[Loss]] = {
    "cross-entropy": CrossEntropy,
    "distill": Distill,
    "distribution": Distribution,
    "feature-match": FeatureMatch,
    "attention-match": AttentionMatch,
    "clip-level": ClipLevel,
    "rad": Rad,
    "scale-regularizer": ScaleRegularizer,
    "sine-regularizer": SineRegularizer,
    "mutual": Mutual,
    "admm": Admm,
    "lipschitz": Lipschitz,
    "rotation-margin": RotationMargin,
}

__all__ = ["LOSSES", "Loss", "Outputs"]
