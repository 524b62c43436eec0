"""Settings of optimizers and learning rate schedules, with their limits."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from vision3d_engine.core.section import AtLeastOne, Section, checked


def _parse_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        message = f"it must be a regular expression, but {error}"
        raise ValueError(message) from error


PatternText = Annotated[str, checked(_parse_pattern)]


class ParamRule(Section):
    """``optimizer.param_rules[n].*``: which parameters have options of their own, and which options."""

    model_config = ConfigDict(extra="forbid")

    match: PatternText | None = None
    """Regular expression that is searched in the names of parameters, such as "^encoder" or "bias$"."""
    module: str | None = None
    """Class of the module that has the parameter, or of one around it; classes derived from it count too."""
    name: str | None = None
    """Name of the group in logs (default: match or module)."""
    lr: float | None = Field(default=None, ge=0)
    """Learning rate, also with layer_decay."""
    lr_factor: float = Field(default=1.0, ge=0)
    """Factor on the optimizer's learning rate."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Weight decay, also of norms and biases."""
    freeze: bool = False
    """Parameters are not trained, and are in no group."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "ParamRule":
        given = self.model_fields_set
        if self.match is None and self.module is None:
            raise ValueError("it must have match or module, which say what it is about")
        if {"lr", "lr_factor"} <= given:
            raise ValueError("it must have lr or lr_factor, not both")
        if self.freeze and given & {"lr", "lr_factor", "weight_decay"}:
            raise ValueError("it must have no rate and no weight decay beside freeze, since it trains nothing")
        return self

    @property
    def condition(self) -> str:
        """What it is about, as it was given."""
        given = {"match": self.match, "module": self.module}
        return ", ".join(f"{key} '{value}'" for key, value in given.items() if value is not None)

    @property
    def title(self) -> str:
        """Name of its group."""
        return self.name or self.match or self.module or ""


class OptimizerSettings(Section):
    """``optimizer.*``: the name of a torch optimizer, and rules for its groups; all other keys become its arguments."""

    model_config = ConfigDict(extra="allow")

    type: str
    """Name of a class in torch.optim, such as SGD, Adam or AdamW."""
    param_rules: tuple[ParamRule, ...] = ()
    """Rules for parameters with options of their own; the first one about a parameter counts."""
    no_decay_on_norm_and_bias: bool = False
    """No weight decay of norms, biases and whatever else has one dimension."""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """Factor on the learning rate from each layer to the one before it; the head has the whole rate."""
    layer_match: PatternText | None = None
    """Regular expression that finds the layers in names of parameters (default: entries of Sequential, ModuleList)."""

    @model_validator(mode="after")
    def _is_consistent(self) -> "OptimizerSettings":
        if self.layer_match is not None and self.layer_decay is None:
            raise ValueError("it must have layer_decay beside layer_match, which does nothing alone")
        return self

    @property
    def has_rules(self) -> bool:
        """Whether parameters are sorted into groups."""
        return bool(self.param_rules) or self.no_decay_on_norm_and_bias or self.layer_decay is not None


class SchedulerSettings(Section):
    """``scheduler.*``: a learning rate schedule; for those of torch, all other keys become its arguments."""

    model_config = ConfigDict(extra="allow")

    type: str | None = None
    """Step, Exponential, Cosine, Linear, or a class in torch.optim.lr_scheduler (none = a constant rate)."""
    total_steps: AtLeastOne | None = None
    """Steps until the rate has reached eta_min (Cosine, Linear, OneCycleLR; default: those of the run)."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up (for all but OneCycleLR, which has its own)."""
    eta_init: float = Field(default=0.1, ge=0)
    """Factor on the learning rate at the start of the warm-up."""
    eta_min: float = Field(default=0.1, ge=0)
    """Smallest factor on the learning rate; for schedules of torch the smallest rate."""
    gamma: float | None = Field(default=None, gt=0)
    """Factor of one decay (Step, Exponential, and torch's)."""
    step_size: AtLeastOne | None = None
    """Schedule steps from one decay to the next (Step, Exponential, StepLR)."""
    interval: Literal["update", "epoch"] | None = None
    """When it steps (default: IterBasedTrainer once an update, EpochBasedTrainer once an epoch)."""
    metric: str | None = None
    """Number of the validation summary that the schedule follows, after each validation (ReduceLROnPlateau)."""

    @classmethod
    def takes_further(cls, values: Mapping[str, Any]) -> bool:
        """Tell whether keys that are not listed here have a meaning: as arguments of a schedule of torch."""
        return values.get("type") not in (None, "Step", "Exponential", "Cosine", "Linear")
