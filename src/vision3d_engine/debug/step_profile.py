"""Profile training steps with torch.profiler: a trace for Perfetto, and what it says in figures."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function, schedule
from torch.utils.flop_counter import FlopCounterMode

from vision3d_engine.core.files import make_folder
from vision3d_engine.debug.profile_costs import Costs
from vision3d_engine.debug.profile_report import report

_STEP, _MODULE = "step ", "module "


def is_compiled(model: nn.Module) -> bool:
    """Tell whether torch compiles a model, or a part of it; it has no public name for that."""
    return any(
        name.endswith("_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for name, module in model.named_modules()
    )


class StepProfile:
    """Records steps that follow each other; changes no bit of them.

    The step before them warms the profiler up. Its FLOPs are counted meanwhile, by torch's own counter, which would
    distort the times of the others.

    Args:
        modules: the modules of the model by name, which are marked while a step is recorded. None where torch compiles
            them: it would run them otherwise, so that the numbers would differ; nor are FLOPs counted then.
        device: where the steps run.
    """

    def __init__(self, modules: Mapping[str, nn.Module] | None, device: torch.device) -> None:
        self._modules, self._device = modules, device
        self._flops = None if modules is None else FlopCounterMode(display=False)
        self._running: list[record_function] = []
        self._profiler = _new_profiler(device)
        self.steps: list[int] = []

    @contextmanager
    def warming_up(self) -> Iterator[None]:
        """Warm up in a block, which is the step before the first that is recorded."""
        self._profiler.start()
        with ExitStack() as stack:
            if self._flops is not None:
                stack.enter_context(self._flops)
            yield
        self._profiler.step()

    @contextmanager
    def recording(self, step: int) -> Iterator[None]:
        """Record a block as a step, given its number."""
        with ExitStack() as stack:
            for name, module in (self._modules or {}).items():
                text = f"{_MODULE}{name} ({type(module).__name__})"
                stack.enter_context(module.register_forward_pre_hook(partial(self._enter, text)))
                stack.enter_context(module.register_forward_hook(self._leave, always_call=True))
            stack.enter_context(record_function(f"{_STEP}{step}"))
            yield
            self.steps.append(step)
        self._profiler.step()

    def mark(self, part: str) -> AbstractContextManager[Any]:
        """Return a context that is seen in the trace under a name."""
        return record_function(part)

    def _enter(self, text: str, *_: Any) -> None:
        self._running.append(record_function(text))
        self._running[-1].__enter__()

    def _leave(self, *_: Any) -> None:
        self._running.pop().__exit__(None, None, None)

    def stop(self) -> None:
        """Record no more."""
        self._profiler.stop()

    def write_trace(self, path: Path) -> None:
        """Write what was recorded for Perfetto or ``chrome://tracing``.

        Raises:
            FolderError: when the folder cannot be made.
        """
        make_folder(path.parent)
        self._profiler.export_chrome_trace(str(path))

    def report(self, trace: Path) -> str:
        """Return what was recorded in tables, given where the trace is."""
        return report(self._costs(), self.steps, trace)

    def _costs(self) -> Costs:
        flops = None if self._flops is None else _by_module(self._flops, self._modules or {})
        events = self._profiler.events() or ()
        return Costs(events, len(self.steps), flops, step_prefix=_STEP, module_prefix=_MODULE, device=self._device)


def _new_profiler(device: torch.device) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    until_stopped = schedule(wait=0, warmup=1, active=1 << 30, repeat=1)
    return profile(activities=activities, schedule=until_stopped, acc_events=False)


def _by_module(counter: FlopCounterMode, modules: Mapping[str, nn.Module]) -> dict[str, int]:
    """Return FLOPs by the names of modules, all of them under an empty name.

    The counter puts the classes of what is around the model before the names.
    """
    counts = {str(key): sum(each.values()) for key, each in counter.get_flop_counts().items()}
    keys = sorted(counts, key=len)
    found = {name: next((key for key in keys if key.endswith(f".{name}")), None) for name in modules}
    return {"": counter.get_total_flops(), **{name: counts[key] for name, key in found.items() if key is not None}}
