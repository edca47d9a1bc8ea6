"""What a recipe file may say. Pydantic models, unknown keys forbidden, so editors get a JSON schema too."""

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Base of all sections: frozen, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Named(BaseModel):
    """A name from one of the tables, every other key being an option of that row."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys beside the declared ones, checked against the row's signature when it is built."""
        return dict(self.__pydantic_extra__ or {})


class Match(Section):
    """Which layers a rule is about; every given key must hold."""

    kind: list[str] | None = None
    """Layer kinds, as the plan names them: `conv2d`, `linear`, `embedding` ..."""
    position: Literal["first", "last", "inner"] | None = None
    """First and last are found from dataflow; inner is neither."""
    depthwise: bool | None = None
    """One filter per input channel."""
    shortcut: bool | None = None
    """A 1x1 convolution on the side branch of an addition."""
    path: list[str] | None = None
    """The user's own module paths: globs, or `re:` and a regular expression that must match fully."""


class Rule(Section):
    """One decision: keep matching layers float for a reason, or binarize them. The first matching rule wins."""

    match: Match = Match()
    optional: bool = False
    """A rule that matches nothing is an error unless it is optional."""
    keep: str | None = None
    """Why matching layers stay float."""
    weights: Named | None = None
    """The weight binarizer."""
    inputs: Named | None = None
    """The input binarizer; without one the layer is weight-only."""
    gain: Named | None = None
    """A factor on the layer's output that its binarizers cannot express."""
    padding: Literal["zero", "one"] = "zero"
    """What a binary input is padded with."""
    int8: bool = False
    """Whether matching layers, which stay float in training, are stored in 8 bits."""
    predict: Annotated[float, Field(ge=0, lt=1)] | None = None
    """In kept layers in front of a ReLU, compute only what a 1-bit copy predicts to be positive, missing this share."""

    @model_validator(mode="after")
    def _one_decision(self) -> "Rule":
        if (self.keep is None) == (self.weights is None):
            raise ValueError("a rule needs either `keep` with a reason or `weights` with a binarizer")
        if self.keep is not None and (not self.keep.strip() or self.inputs is not None or self.gain is not None):
            raise ValueError("`keep` needs a reason and excludes `inputs` and `gain`")
        if self.int8 and self.keep is None:
            raise ValueError("`int8` is for layers that a rule keeps; add `keep` with a reason")
        if self.predict is not None and (self.keep is None or self.int8):
            raise ValueError("`predict` is for layers that a rule keeps, with a reason in `keep`, and excludes `int8`")
        return self


class Optimizer(Named):
    """Optimizer settings, with options of the row besides."""

    name: str = "adam"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    binary_weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decay on binary weights pulls them towards their decision boundary, hence its own key."""
    glorot: bool = False
    """Whether a layer's rate, while its weights are binary, is multiplied by sqrt((fan_in + fan_out) / 1.5)."""


def _operand(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and 2 <= value <= 8):
        return value
    raise ValueError("it must be true, false or a number of bits from 2 to 8")


Operand = Annotated[bool | int, BeforeValidator(_operand)]
"""Whether operands are binary; a number is for a relaxation of so many bits."""


class Stage(Section):
    """A part of the run in which only some operands are binary."""

    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the epochs; the shares of all stages add up to 1."""
    weights: Operand = True
    """Whether weights are binary; a number is for a relaxation of so many bits."""
    inputs: Operand = True
    """Whether inputs are binary, in the same way."""
    fit: Literal["layer-wise"] | None = None
    """How weights that become binary are set: fitted layer by layer to the codes that the float weights lead to."""
    frozen: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of each filter's weights, largest first, that is set to plus or minus its mean magnitude and held there."""
    lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate at the start of this stage; default: the optimizer's."""
    weight_decay: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _frozen_or_binary(self) -> "Stage":
        if 0 < self.frozen < 1 and self.weights is not False:
            raise ValueError("`frozen` below 1 is for a stage with `weights = false`")
        if self.frozen == 1 and self.weights is not True:
            raise ValueError("where all weights are frozen they are binary; leave `weights` out")
        if self.fit is not None and (self.weights is not True or self.frozen):
            raise ValueError("`fit` is for a stage that makes the weights binary and freezes none")
        return self


class Loss(Named):
    """One term of the loss."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    since: Annotated[float, Field(ge=0, lt=1)] = 0.0
    until: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the run at which the term begins, and at which it ends."""

    @model_validator(mode="after")
    def _in_order(self) -> "Loss":
        if self.since >= self.until:
            raise ValueError(f"it begins at {self.since:g} of the run and ends at {self.until:g}")
        return self


class Ensemble(Section):
    """How the members of an ensemble come to differ; the rewrite `ensemble` says how many there are."""

    scheme: Literal["bagging", "boosting-a", "boosting-b", "boosting-c", "boosting-d"] = "bagging"
    """Bagging draws a sample for each member, boosting draws more of what the members before it get wrong."""
    start: Literal["converted", "previous"] = "converted"
    """Whether a member starts from the converted network or from the weights of the member before it."""


def _momentum(value: Any) -> Any:
    if value == "cumulative" or (isinstance(value, int | float) and 0 < value <= 1 and value is not True):
        return value
    raise ValueError('it must be a number above 0 and up to 1, or "cumulative"')


Momentum = Annotated[float | Literal["cumulative"], BeforeValidator(_momentum)]


class Training(Section):
    """How to fine-tune."""

    epochs: Annotated[int, Field(gt=0)] = 20
    batch_size: Annotated[int, Field(gt=0)] = 128
    optimizer: Optimizer = Optimizer()
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    schedule_spans: Literal["run", "stage"] = "run"
    """Whether the learning rate decays once over the run or anew in each stage."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Share of a span over which the learning rate rises from 0."""
    stages: list[Stage] = [Stage()]
    losses: list[Loss] = [Loss(name="distill", weight=1.0)]
    teacher: Literal["frozen", "joint"] = "frozen"
    """A joint teacher trains along, by the labels and what the losses ask of it, never through the student's terms."""
    start: Literal["teacher", "scratch"] = "teacher"
    """Whether the student begins with its teacher's weights; from scratch, a joint teacher begins anew as well."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    gradient_bits: Annotated[int, Field(ge=2, le=8)] | None = None
    """Bits of the gradients that come to binary layers, to see what integer training would do; no faster for it."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Part of the training data that is held out to choose the best checkpoint."""
    batch_norm_batches: Annotated[int, Field(ge=0)] = 50
    """Batches on which batch norm is re-estimated before the first step, at each stage and at the end; 0: never."""
    batch_norm_momentum: Momentum = 0.1
    """Weight of a new batch in the running statistics; or their plain average since they were last re-estimated."""
    batch_norm_frozen: bool = False
    """Whether batch norm trains with its running statistics, which then move only where they are re-estimated."""
    ensemble: Ensemble | None = None
    """For the rewrite `ensemble`: each member in turn is trained for all the epochs."""

    @property
    def keeps_statistics(self) -> bool:
        """Whether batch norm stays at the statistics that it had in the float network."""
        return self.batch_norm_frozen and self.batch_norm_batches == 0

    @model_validator(mode="after")
    def _consistent(self) -> "Training":
        total = sum(stage.share for stage in self.stages)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of the stages add up to {total:g}, not 1")
        if not any((loss.since, loss.until) == (0, 1) for loss in self.losses):
            raise ValueError("one of the losses must last for the whole run")
        last = self.stages[-1]
        if not (last.weights is True and last.inputs is True):
            raise ValueError("the last stage must have binary weights and inputs, or nothing could be packed")
        for before, after in pairwise(self.stages):
            if after.frozen < before.frozen and after.weights is not True:
                raise ValueError(
                    f"frozen weights stay frozen until all are binary, and {after.frozen:g} follows {before.frozen:g}"
                )
            if after.fit is not None and before.weights is True:
                raise ValueError("`fit` belongs to the stage in which the weights become binary, not to one after it")
        return self


class Checks(Section):
    """What a rewritten student must pass."""

    dead_channels: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of constant channels on the probe input at which a sign is dead."""
    dead_signs: Literal["float", "refuse"] = "float"
    """Whether a layer with a dead sign stays float, as long as most signs are alive, or the model is refused."""


class Published(Section):
    """What the paper reports, for the network and data nearest to a ResNet-20 on CIFAR-10. Units: per cent, top-1."""

    on: str
    """Network, data, and the bits where they are not the recipe's."""
    accuracy: Annotated[float, Field(gt=0, le=100)]
    original: Annotated[float, Field(gt=0, le=100)]
    """Of the float network."""

    @property
    def gap(self) -> float:
        """Points from the float network down."""
        return self.original - self.accuracy


class Recipe(Section):
    """One method, as data."""

    name: str
    title: str
    source: str
    summary: str
    published: Published | None = None
    rewrites: list[Named]
    """Ordered; each entry is a name or a table with a name and options."""
    layers: list[Rule]
    training: Training = Training()
    checks: Checks = Checks()

    @model_validator(mode="before")
    @classmethod
    def _plain_names(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("rewrites"), list):
            data = data | {"rewrites": [{"name": r} if isinstance(r, str) else r for r in data["rewrites"]]}
        return data

    @model_validator(mode="after")
    def _ensemble_has_members(self) -> "Recipe":
        if self.training.ensemble is not None and all(named.name != "ensemble" for named in self.rewrites):
            raise ValueError("`training.ensemble` is about members, which the rewrite 'ensemble' makes; add that")
        return self
