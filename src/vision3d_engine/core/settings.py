"""Every setting that the engine reads, with its limits. Loaded on first use, since pydantic costs start-up time."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from vision3d_engine.core.durations import (
    parse_cadence,
    parse_duration,
    parse_iterations,
    parse_val_cadence,
    parse_window,
)
from vision3d_engine.core.files import absolute_path
from vision3d_engine.core.optim_settings import OptimizerSettings, SchedulerSettings
from vision3d_engine.core.section import AtLeastOne, Section, checked


def _from_here(name: str) -> str:
    """Return the absolute path of what lies where the command runs, which stays the same; other names as they are."""
    path = absolute_path(name)
    return str(path) if path.exists() else name


CheckpointName = Annotated[str, AfterValidator(_from_here)]
CadenceText = Annotated[str, checked(parse_cadence)]
ValCadenceText = Annotated[str, checked(parse_val_cadence)]
IterationsText = Annotated[str, checked(parse_iterations)]
WindowText = Annotated[str, checked(parse_window)]
DurationText = Annotated[str, checked(parse_duration)]


class ExpSettings(Section):
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


class TrainerSettings(Section):
    """``trainer.*``: how long to train, how to accumulate, what to log and keep."""

    max_epoch: AtLeastOne | None = 10
    """Epochs to train (beside max_updates, if it is not given: as many as these take)."""
    max_updates: AtLeastOne | None = None
    """Updates after which the run ends, also in mid-epoch, unless max_epoch comes first (default: no limit)."""
    early_stopping_metric: str | None = None
    """End the run when this number of the validation summary no longer improves (none: off)."""
    early_stopping_patience: AtLeastOne = 10
    """Validations without improvement after which it ends."""
    early_stopping_min_delta: float = Field(default=0, ge=0)
    """By how much a number must be better than the best one to be an improvement."""
    early_stopping_mode: Literal["min", "max"] | None = None
    """Whether less or more is better (default: as in save_best_model_on_metric of the same metric)."""
    num_iters_per_epoch: AtLeastOne | None = None
    """Iterations that IterBasedTrainer calls an epoch (default: the length of the training loader)."""
    limit_batches: AtLeastOne | None = None
    """At most so many batches in each epoch of EpochBasedTrainer and each validation or test, to try a script out."""
    val_every: ValCadenceText = "1 epoch"
    """How often it is validated: "1 epoch", "500 iterations" (training batches) or "never"; at the end in any case."""
    val_first: bool = False
    """Validate once more, before the first epoch."""
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
    parameter_statistics: bool = False
    """Write, with each log line, for each module the norms of its gradient and weights, how large the update is beside
    these, and the share of dead units."""
    curve_axis: Literal["batches", "updates", "samples"] | None = None
    """What all curves lie over (default: those of training over batches, those of validation over epochs)."""
    write_files: bool = False
    """Write the clouds, correspondences, images, figures, histograms and texts of a script as files too, into
    output_dir/files, beside TensorBoard."""
    progress_bar: bool = True
    """Show how far a pass is, on a terminal or in a notebook."""
    save_latest_n_models: int = -1
    """How many epoch-N.pth files to keep (-1 = all); best models and the newest epoch are always kept."""
    save_best_n_models: int = Field(default=0, ge=0)
    """How many epoch-N.pth files to keep for each metric, beside best_METRIC.pth: those with the best scores."""
    save_every_n_epochs: int = Field(default=0, ge=0)
    """Keep every n-th epoch-N.pth whatever else is removed (0 = none)."""
    save_every: CadenceText = "1 epoch"
    """How often checkpoint.pth is written: "1 epoch", "500 iterations", "10 min"; also when the run is stopped."""
    replay_every: IterationsText | None = None
    """How often a full checkpoint is written that a replay can start from ("100 iterations"); of these, those at
    doubling distances from the newest stay (none: only checkpoint.pth)."""
    async_save: bool = True
    """Copy the state at the end of a step and write the file in a thread, while training goes on."""
    save_on_exception: bool = False
    """Write crash.pth beside the checkpoints when user code raises; checkpoint.pth stays as it is."""
    nonfinite: Literal["stop", "skip", "ignore"] = "stop"
    """Stop at the log line after which the loss or a weight is NaN or infinite; such weights are never saved. Or skip
    updates whose gradients are, on all processes alike; or go on with them (ignore)."""
    on_oom: Literal["raise", "skip"] = "raise"
    """What happens when the device has no memory for a training batch: the run ends, or the batch is left out."""
    max_skipped: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of an epoch's training batches, or updates, that may be left out; when there are more, the run ends."""
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
    """Anomaly detection and a check of every loss and gradient; slow."""
    pdb: bool = False
    """Open python's debugger where an error has left the script's own code, if standard input is a terminal."""
    profile: WindowText | None = None
    """Profile training steps: "10:20" are the steps 10 to 19, counted from 1 since the start of the run."""
    memory_snapshot: bool = False
    """Record the memory of a CUDA device; when the run ends, its latest events are in debug/memory-rankN.pickle."""
    checkpoint: CheckpointName | None = None
    """Checkpoint to load: a path, or a name in the checkpoint folder."""
    test_epoch: AtLeastOne | None = None
    """Test the model of this epoch (epoch-N.pth)."""
    test_name: str | None = None
    """Name of the test: its tables and files are called results-NAME, so that a run folder holds several tests."""
    replica_check: Literal["error", "warn", "off"] = "error"
    """What it means when processes that train one model hold different weights: the end of the run, or a warning; or
    they are not compared (for unlike devices, and for weights that shall differ)."""
    collective_timeout_s: float = Field(default=600.0, gt=0)
    """Seconds that a process may wait for another before the run ends, saying where and for whom."""
    hang_after: DurationText | None = "5 min"
    """Write the stacks of all threads and data workers when no step is made for so long (none: never)."""
    on_hang: Literal["continue", "stop"] = "continue"
    """What follows then: the run goes on waiting, or the process ends with code 1."""
    heartbeat_s: float = Field(default=60.0, gt=0)
    """Seconds without a sign of life after which a process counts as dead."""
    device: str | None = None
    """Device to run on, such as cpu, cuda, cuda:1 or mps (default: the accelerator if there is one)."""

    @model_validator(mode="after")
    def _refuse_first_of_none(self) -> "TrainerSettings":
        if self.val_first and parse_val_cadence(self.val_every) is None:
            raise ValueError(
                "val_first is true and val_every is 'never': set val_first to false, or val_every to '1 epoch'"
            )
        return self

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
    def _refuse_failing_collectives(self) -> "TrainerSettings":
        if self.on_oom == "skip" and (self.parallel == "fsdp2" or self.sync_batchnorm or self.static_graph):
            message = (
                "on_oom is 'skip' beside parallel: fsdp2, sync_batchnorm or static_graph, whose processes exchange in "
                "the midst of a step: one without memory would leave the others waiting. Set on_oom to 'raise'"
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

    @model_validator(mode="before")
    @classmethod
    def _leave_the_length_to_updates(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and "max_epoch" not in values and values.get("max_updates") is not None:
            return {**values, "max_epoch": None}
        return values

    @model_validator(mode="after")
    def _refuse_endless(self) -> "TrainerSettings":
        if self.max_epoch is None and self.max_updates is None:
            raise ValueError("max_epoch is None, and max_updates is not given: one of them must end the run")
        return self

    @model_validator(mode="after")
    def _refuse_early_stopping_without_metric(self) -> "TrainerSettings":
        names = [name for name in type(self).model_fields if name.startswith("early_stopping_")]
        given = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
        if self.early_stopping_metric is None and given:
            raise ValueError(f"{given[0]} is set, but it does nothing without early_stopping_metric, such as 'loss'")
        return self


SECTIONS: dict[str, type[Section]] = {
    "exp": ExpSettings,
    "trainer": TrainerSettings,
    "optimizer": OptimizerSettings,
    "scheduler": SchedulerSettings,
}


class Settings(Section):
    """All settings of a run that the engine itself reads."""

    exp: ExpSettings = ExpSettings()
    trainer: TrainerSettings = TrainerSettings()
