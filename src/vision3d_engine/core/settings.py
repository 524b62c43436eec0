"""Every setting that the engine reads, with its limits. Loaded on first use, since pydantic costs start-up time."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from vision3d_engine.core.durations import parse_cadence, parse_duration
from vision3d_engine.core.files import absolute_path

AtLeastOne = Annotated[int, Field(ge=1)]


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    """Keep the text as it was written, if it can be parsed."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _parse_pattern(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        message = f"it must be a regular expression, but {error}"
        raise ValueError(message) from error


def _from_here(name: str) -> str:
    """Return the absolute path of what lies where the command runs, which stays the same; other names as they are."""
    path = absolute_path(name)
    return str(path) if path.exists() else name


CheckpointName = Annotated[str, AfterValidator(_from_here)]
CadenceText = Annotated[str, _checked(parse_cadence)]
DurationText = Annotated[str, _checked(parse_duration)]
PatternText = Annotated[str, _checked(_parse_pattern)]


class _Section(BaseModel):
    """A frozen group of settings whose field docstrings are its help texts."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    @classmethod
    def takes_further(cls, values: Mapping[str, Any]) -> bool:  # noqa: ARG003  a section may look at them
        """Tell whether keys that are not listed here have a meaning beside these values."""
        return cls.model_config.get("extra") == "allow"


class ExpSettings(_Section):
    """``exp.*``: where the run lives and what it is called."""

    name: str | None = None
    """Name of the experiment, for people."""
    output_dir: Path = Path("outputs")
    """Folder of the run; the other folders default to places inside it."""
    checkpoint_dir: Path | None = None
    """Folder of the checkpoints (default: output_dir/checkpoints)."""
    log_dir: Path | None = None
    """Folder of the text logs (default: output_dir/logs)."""
    event_dir: Path | None = None
    """Folder of the TensorBoard events (default: output_dir/events)."""
    seed: int = 0
    """Seed of torch, numpy and python; each process adds its rank."""


class TrainerSettings(_Section):
    """``trainer.*``: how long to train, how to accumulate, what to log and keep."""

    max_epoch: AtLeastOne = 10
    """Epochs to train."""
    num_iters_per_epoch: AtLeastOne | None = None
    """Iterations that IterBasedTrainer calls an epoch (default: the length of the training loader)."""
    limit_batches: AtLeastOne | None = None
    """At most so many batches in each epoch of EpochBasedTrainer and each validation or test, to try a script out."""
    overfit: int = Field(default=0, ge=0)
    """Train on the first so many batches of each process in every epoch, and validate on them (0 = off)."""
    fast_dev_run: int = Field(default=0, ge=0)
    """Try a script out: so many steps of training, validation or test, and a save and a load, in a scratch folder."""
    grad_acc_steps: AtLeastOne = 1
    """Batches whose gradients make one update (1 = no accumulation)."""
    uneven: Literal["join", "repeat", "drop", "cycle"] = "join"
    """When a process has fewer batches in an epoch than others: it joins their updates with gradients of zeros; it
    repeats its last batch without weight, for steps with exchanges of their own; the others' surplus is dropped; or it
    begins its batches again (``cycle``)."""
    means: Literal["samples", "batches"] = "samples"
    """What means of validations, epochs and log lines are over: samples, where it is known how many a batch has, or
    batches, as in the 2022 engine."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """In which numbers steps are computed: fp32, or torch's autocast to bf16 or fp16 (whose losses are scaled); weights
    and gradients stay as they are. In training, validation and tests."""
    tf32: bool = False
    """Let matrix products and convolutions in fp32 use TensorFloat-32 on CUDA: faster, with 10 bits of mantissa."""
    clip_grad_norm: Annotated[float, Field(gt=0)] | None = None
    """Bring the norm of the gradients of an update down to this; the norm before is logged as grad_norm."""
    clip_grad_value: Annotated[float, Field(gt=0)] | None = None
    """Bring each number of the gradients of an update into [-value, value], after the norm."""
    grad_acc_reduction: Literal["mean", "sum"] = "mean"
    """Mean makes the update equal that of one big batch; sum adds the gradients up, as the 2022 engine did."""
    scale_lr: Literal["none", "linear", "sqrt"] = "none"
    """Multiply the learning rate, with its whole schedule, by the number of processes or by its square root."""
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """Mode in which torch.compile compiles the registered model (default: it is run as it is)."""
    fused_optimizer: bool = True
    """Use torch's fused kernels for optimizers of torch.optim where there are any, unless the script chose others."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Keep an exponential moving average of the weights with this decay, and validate and save it (none: off)."""
    ema_warmup: bool = True
    """Let a young average follow faster: the decay is at most (1 + n) / (10 + n) after n averages."""
    ema_every: AtLeastOne = 1
    """Updates from one average to the next."""
    ema_buffers: bool = False
    """Average buffers too (running means of norms); otherwise those of the training are taken as they are."""
    log_steps: AtLeastOne = 10
    """Iterations from one log line to the next."""
    save_latest_n_models: int = -1
    """How many epoch-N.pth files to keep (-1 = all); best models and the newest epoch are always kept."""
    save_best_n_models: int = Field(default=0, ge=0)
    """How many epoch-N.pth files to keep for each metric, beside best_METRIC.pth: those with the best scores."""
    save_every_n_epochs: int = Field(default=0, ge=0)
    """Keep every n-th epoch-N.pth whatever else is removed (0 = none)."""
    save_every: CadenceText = "1 epoch"
    """How often checkpoint.pth is written: "1 epoch", "500 iterations", "10 min"; also when the run is stopped."""
    async_save: bool = True
    """Copy the state at the end of a step and write the file in a thread, while training goes on."""
    save_on_exception: bool = False
    """Write crash.pth beside the checkpoints when user code raises; checkpoint.pth stays as it is."""
    nonfinite: Literal["stop", "ignore"] = "stop"
    """Stop at the log line after which the loss or a weight is NaN or infinite; such weights are never saved."""
    max_time: DurationText | None = None
    """Save and end with code 75 after this time, such as "11.5 h" or "HH:MM:SS", so that a next job can resume."""
    requeue: bool = False
    """Under SLURM, ask for this job to be queued again when it was stopped by SIGUSR1 or by max_time."""
    overwrite: bool = False
    """Start anew in a folder that holds checkpoints of an earlier run, which are removed."""
    allow_changed_data: bool = False
    """Resume although the number of samples, the global batch, the seed or the accumulation has changed."""
    cudnn_deterministic: bool = True
    """Repeatable cuDNN kernels (true) or the fastest ones for the shapes seen (false)."""
    parallel: Literal["ddp", "fsdp2", "none"] = "ddp"
    """How several processes share a model: each holds all of it (ddp) or a part (fsdp2); none for one process only."""
    sync_batchnorm: bool = False
    """Batch norms take their means over the batches of all processes; on accelerators only."""
    find_unused_parameters: bool = False
    """DistributedDataParallel looks for parameters that take no part in the loss; costs time at every update."""
    static_graph: bool = False
    """Tell DistributedDataParallel that every step uses the same parameters in the same way."""
    gradient_as_bucket_view: bool = False
    """Gradients lie in DistributedDataParallel's buffers, which saves memory of their size."""
    gradient_compression: Literal["none", "bf16", "fp16"] = "none"
    """Type in which DistributedDataParallel exchanges gradients; bf16 needs NCCL."""
    fsdp_blocks: tuple[str, ...] = ()
    """Classes of the modules that fsdp2 gathers one at a time (default: found by fsdp_min_params)."""
    fsdp_min_params: AtLeastOne = 1_000_000
    """Parameters from which on an entry of a Sequential or ModuleList is gathered by itself."""
    fsdp_param_dtype: Literal["none", "bf16", "fp16"] = "none"
    """Type in which fsdp2 gathers parameters and computes; what the model returns is float32."""
    fsdp_reduce_dtype: Literal["none", "fp32", "bf16", "fp16"] = "none"
    """Type in which fsdp2 adds up gradients (default: that of the computation)."""
    resume: bool = False
    """Go on from checkpoint.pth."""
    on_resume: Literal["keep", "config"] = "keep"
    """Whose learning rate and weight decay are in force after a resume: the checkpoint's (keep) or the script's."""
    debug: bool = False
    """Anomaly detection and a check of every gradient; slow."""
    checkpoint: CheckpointName | None = None
    """Checkpoint to load: a path, or a name in the checkpoint folder."""
    test_epoch: AtLeastOne | None = None
    """Test the model of this epoch (epoch-N.pth)."""
    replica_check: Literal["error", "warn", "off"] = "error"
    """What it means when processes that train one model hold different weights: the end of the run, or a warning; or
    they are not compared (for unlike devices, and for weights that shall differ)."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that a process may wait for another before the run ends, saying where and for whom."""
    heartbeat_s: float = Field(default=60.0, gt=0)
    """Seconds without a sign of life after which a process counts as dead."""
    device: str | None = None
    """Device to run on, such as cpu, cuda, cuda:1 or mps (default: the accelerator if there is one)."""

    @model_validator(mode="after")
    def _refuse_two_casts(self) -> "TrainerSettings":
        if self.precision != "fp32" and self.fsdp_param_dtype != "none":
            message = (
                f"precision is '{self.precision}' and fsdp_param_dtype is '{self.fsdp_param_dtype}': both would cast. "
                "Set fsdp_param_dtype to 'none', or precision to 'fp32'"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _refuse_average_without_decay(self) -> "TrainerSettings":
        names = [name for name in type(self).model_fields if name.startswith("ema_")]
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.ema_decay is None and given:
            raise ValueError(f"{given[0]} is set, but no average is kept without ema_decay, such as 0.999")
        return self


class ParamRule(_Section):
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


class OptimizerSettings(_Section):
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


class SchedulerSettings(_Section):
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


SECTIONS: dict[str, type[_Section]] = {
    "exp": ExpSettings,
    "trainer": TrainerSettings,
    "optimizer": OptimizerSettings,
    "scheduler": SchedulerSettings,
}


class Settings(_Section):
    """All settings of a run that the engine itself reads."""

    exp: ExpSettings = ExpSettings()
    trainer: TrainerSettings = TrainerSettings()
