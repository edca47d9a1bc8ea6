"""Fine-tuning; and for people with a training loop of their own, the few things that binary layers need in it.

prepare(student, batches)                                     # once
optimizer = torch.optim.Adam(parameter_groups(student, settings))
...
optimizer.step(); clip_latent(student)                        # each step
advance_schedules(student, progress)                         # each epoch
reestimate_batch_norm(student, batches)                       # at the end
"""

from bnnconvert.train.calibrate import prepare, reestimate_batch_norm
from bnnconvert.train.latent import advance_schedules, clip_latent, set_stage
from bnnconvert.train.loop import finetune
from bnnconvert.train.metrics import Accuracy, evaluate_samples, measure_accuracy
from bnnconvert.train.optimizers import parameter_groups

__all__ = [
    "Accuracy",
    "advance_schedules",
    "clip_latent",
    "evaluate_samples",
    "finetune",
    "measure_accuracy",
    "parameter_groups",
    "prepare",
    "reestimate_batch_norm",
    "set_stage",
]
