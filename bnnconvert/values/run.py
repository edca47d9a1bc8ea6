"""The run directory `NAME.bnn/`: where a conversion keeps its source, recipe, plan, weights, checkpoints and logs.

run.json              what was converted and how; everything needed to build the student again
source.*              copy of the user's file, or the factory's weights
recipe.toml           recipe as used
plan.json             decisions per layer
student.safetensors   the student as converted
best.safetensors      the student as fine-tuned
checkpoint.pt, metrics.jsonl, tensorboard/
members/N/            of an ensemble: the same for each member, whose training is a run of its own
.lock                 held by the process that changes the run; a killed one lets go of it
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from bnnconvert.errors import ArtifactError, UsageError, first_line
from bnnconvert.values.files import write_text
from bnnconvert.values.inputs import Inputs
from bnnconvert.values.steering import Steering

SUFFIX, LOCK, MEMBERS = ".bnn", ".lock", "members"


class DataRecord(BaseModel):
    """The data that a run was made with, so that later commands need no repetition."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str
    scale: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None = None


class RunRecord(BaseModel):
    """Content of run.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: int = 1
    producer: str
    source: str
    """What the user typed."""
    source_kind: str
    source_file: str
    """File of this directory that holds the model or its weights."""
    source_sha256: str
    factory: str | None = None
    """The factory that builds the module for the weights, if the file alone does not."""
    trust_pickle: bool = False
    recipe: str
    inputs: Inputs
    shape_is_guessed: bool = False
    data: DataRecord | None = None
    task: str = "classification"
    """What the user typed: a name, or package.module:object."""
    metrics: dict[str, float] = {}
    steering: Steering = Steering()
    """How the model was traced."""


@dataclass(frozen=True)
class RunDirectory:
    """Paths of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, without the suffix."""
        return self.path.name.removesuffix(SUFFIX)

    def file(self, name: str) -> Path:
        """A file of this run."""
        return self.path / name

    @property
    def has_checkpoint(self) -> bool:
        """Whether fine-tuning has begun."""
        return self.file("checkpoint.pt").exists() or any(self.file(MEMBERS).glob("*/checkpoint.pt"))

    @property
    def weights(self) -> Path:
        """The student's newest weights: as fine-tuned, else as converted."""
        best = self.file("best.safetensors")
        return best if best.exists() else self.file("student.safetensors")

    def read(self) -> RunRecord:
        """Content of run.json.

        Raises: ArtifactError if it is damaged.
        """
        try:
            return RunRecord.model_validate_json(self.file("run.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise ArtifactError(
                f"{self.path}: run.json cannot be read ({first_line(error)}); run `bnnconvert convert` again."
            ) from error

    def write(self, record: RunRecord) -> None:
        """Replace run.json."""
        write_text(self.file("run.json"), record.model_dump_json(indent=2) + "\n")


def find_run(path: Path | None, *, folder: Path) -> RunDirectory:
    """The run at `path`, or the newest one in `folder`.

    Raises: UsageError if there is none.
    """
    if path is not None:
        if not (path / "run.json").is_file():
            raise UsageError(f"{path}: is no run directory; make one with `bnnconvert convert MODEL --recipe NAME`.")
        return RunDirectory(path)
    runs = [p for p in folder.glob(f"*{SUFFIX}") if (p / "run.json").is_file()]
    if not runs:
        raise UsageError(f"{folder}: holds no run (*{SUFFIX}); run `bnnconvert convert MODEL --recipe NAME` first.")
    return RunDirectory(max(runs, key=lambda p: ((p / "run.json").stat().st_mtime_ns, p.name)))


def hold(folder: Path) -> AbstractContextManager[object]:
    """Keep other processes from changing the run in `folder` until the context ends; contexts in one thread nest.

    Raises: UsageError where another process holds it, or nothing may be written there.
    """
    try:
        return FileLock(folder / LOCK, is_singleton=True).acquire(timeout=0)
    except Timeout as error:
        raise UsageError(f"{folder}: another process is fine-tuning this run; wait for it, or stop it.") from error
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise UsageError(f"{folder}: may not be written ({reason}); copy it to a folder of your own.") from error


@contextmanager
def new_run(path: Path, *, replace: bool) -> Iterator[RunDirectory]:
    """A new run, filled under a temporary name and moved to `path` when all is well; else nothing stays.

    A run there that holds no checkpoint is replaced; one that does only if `replace` says so.

    Raises: UsageError.
    """
    if path.exists() and not (path / "run.json").is_file():
        raise UsageError(f"{path}: exists and is no run directory; choose another name with --out.")
    if RunDirectory(path).has_checkpoint and not replace:
        raise UsageError(
            f"{path}: holds a fine-tuned run that would be lost; choose another name with --out, or give --replace."
        )
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise UsageError(f"{path}: cannot be made ({error.strerror}); choose another place with --out.") from error
    try:
        temporary.chmod(0o755)
        (temporary / LOCK).touch()  # so that a refused command leaves no file that was not there
        with hold(path) if path.exists() else nullcontext():
            yield RunDirectory(temporary)
            if path.exists():
                old = temporary.with_name(temporary.name + ".old")
                os.replace(path, old)
                os.replace(temporary, path)
                shutil.rmtree(old)
            else:
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
