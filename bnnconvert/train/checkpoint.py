"""A run's checkpoint: one file, replaced at once, holding everything that the rest of the run depends on.

No random state is in it, as every random number of a run is a function of (seed, epoch, step).
"""

import io
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from bnnconvert.errors import ArtifactError, UsageError
from bnnconvert.train.latent import held_weights, restore_held
from bnnconvert.train.metrics import Tally
from bnnconvert.values.files import atomic_write
from bnnconvert.values.recipe import Training
from bnnconvert.values.report import DeadChannels, EpochRecord

FORMAT = 2


@dataclass
class State:
    """Where a run stands, beside the weights and the optimizer."""

    step: int = 0
    stage: int = -1
    """Index of the last stage that has begun."""
    tally: Tally = field(default_factory=Tally)
    history: list[EpochRecord] = field(default_factory=list)
    best_epoch: int = 0
    best_accuracy: float = -1.0
    start_accuracy: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    """Of `seconds`, those that were over when the epoch began."""
    signs: dict[str, Tensor] = field(default_factory=dict)
    """Weight signs at the end of the epoch before, by path."""


def save_checkpoint(path: Path, state: State, *, parts: dict[str, Any], settings: dict[str, Any]) -> None:
    """Write a checkpoint: `parts` are the state dicts, `settings` what a resumed run must agree with."""
    plain = asdict(replace(state, signs={}))
    content = {"format": FORMAT, "state": json.dumps(plain), "signs": state.signs, "settings": json.dumps(settings)}
    # By way of memory: torch's own file writer tells neither of a full disk nor of any other cause.
    stream = io.BytesIO()
    torch.save(content | {"parts": parts}, stream)
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(stream.getbuffer())


def load_checkpoint(path: Path, settings: dict[str, Any]) -> tuple[State, dict[str, Any], list[str]]:
    """State, parts and the differences in environment of a checkpoint that was made with the same settings.

    Raises: UsageError naming each setting that differs; ArtifactError for a file that is not a checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        made_with = json.loads(content["settings"])
        plain = json.loads(content["state"])
    except (UnpicklingError, RuntimeError, KeyError, TypeError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: damaged, or not a checkpoint; fine-tune again without --resume.") from error
    if content["format"] != FORMAT:
        raise ArtifactError(
            f"{path}: format {content['format']}, this version reads {FORMAT}; use the version it is of."
        )
    made_with["training"] = _completed(made_with["training"])
    environment, now = made_with.pop("environment"), settings["environment"]
    same = {key: value for key, value in settings.items() if key != "environment"}
    if changed := differences(made_with, same):
        raise UsageError(
            f"{path}: cannot resume exactly, as {'; '.join(changed)}; use the checkpoint's settings, or start anew "
            "without --resume."
        )
    history = [
        EpochRecord(**record | {"dead_channels": {k: DeadChannels(**v) for k, v in record["dead_channels"].items()}})
        for record in plain.pop("history")
    ]
    state = State(**plain | {"tally": Tally(**plain["tally"]), "history": history, "signs": content["signs"]})
    return state, content["parts"], differences(environment, now)


def _completed(training: Any) -> Any:
    """A checkpoint's training section with the defaults of keys that are newer than it."""
    try:
        return Training.model_validate(training).model_dump(mode="json")
    except ValidationError:
        return training


def collect_parts(networks: list[nn.Module], optimizer: Any, scaler: Any) -> dict[str, Any]:
    """State dicts of everything that trains: the student, then what else a step depends on."""
    student, *others = networks
    return {
        "student": student.state_dict(),
        "others": [network.state_dict() for network in others],
        "held": held_weights(student),
        "optimizer": optimizer.state_dict(),
        "scaler": {} if scaler is None else scaler.state_dict(),
    }


def restore_parts(parts: dict[str, Any], networks: list[nn.Module], optimizer: Any, scaler: Any) -> None:
    """Take up the state dicts of a checkpoint."""
    student, *others = networks
    student.load_state_dict(parts["student"])
    for network, state in zip(others, parts["others"], strict=True):
        network.load_state_dict(state)
    restore_held(student, parts["held"])
    optimizer.load_state_dict(parts["optimizer"])
    if scaler is not None:
        scaler.load_state_dict(parts["scaler"])


def differences(before: Any, now: Any, key: str = "") -> list[str]:
    """Each leaf in which two nested settings differ, as half a sentence."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = list(before) + [k for k in now if k not in before]
        return [text for k in keys for text in differences(before.get(k), now.get(k), f"{key}.{k}" if key else k)]
    return [] if before == now else [f"{key} was {before!r} and is {now!r}"]


def portable_state(model: nn.Module) -> dict[str, Tensor]:
    """A model's state dict as contiguous copies on the CPU, none sharing memory, as safetensors wants them."""
    return {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
