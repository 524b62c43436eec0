"""What torch.profiler has recorded of training steps, in figures: by part of the step, operation and module."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

_USER_SCOPE = 7  # of record_function, in torch's RecordScope
_BACKWARD = "autograd::engine::evaluate_function"
_PARTS = ("data", "forward", "backward", "optimizer", "hooks")


class ModuleCost(NamedTuple):
    """What a module costs in a step, with all that is in it: times in ms, FLOPs of both passes; None if not known."""

    forward_ms: float
    backward_ms: float
    flops: int | None


class Costs:
    """Costs of a step, as means over those that were recorded.

    Args:
        events: of the profiler.
        steps: how many steps they are of.
        flops: of one step by module, all of them under an empty name; None when not counted.
        step_prefix: with which the names of steps begin.
        module_prefix: with which those of modules do.
        device: whose time counts.

    Attributes:
        step_ms: time of a step: of the device on CUDA, else of the host.
        flops: of one step; None when not counted.
        operations: by name, own time in ms, and number of calls.
        modules: by name and class.
        parts: time of the host in ms by part of the step, of what is marked in it.
    """

    def __init__(
        self,
        events: Iterable[Any],
        steps: int,
        flops: Mapping[str, int] | None,
        *,
        step_prefix: str,
        module_prefix: str,
        device: torch.device,
    ) -> None:
        self._is_cuda, self._prefix = device.type == "cuda", module_prefix
        self._scale = 1e-3 / max(steps, 1)
        own = [each for each in events if each.device_type.name == "CPU"]
        ranges = [each for each in own if each.scope == _USER_SCOPE]
        spans = [each.time_range for each in ranges if each.name.startswith(step_prefix)]
        inside = [each for each in own if any(span.start <= each.time_range.start <= span.end for span in spans)]
        self.flops = None if flops is None else flops[""]
        self.operations = self._operations(inside)
        self.modules = self._modules(inside, flops or {})
        self.parts = {name: _total(each.cpu_time_total for each in ranges if each.name == name) for name in _PARTS}
        self.parts = {name: time * self._scale for name, time in self.parts.items() if time}
        busy = sum(time for time, _ in self.operations.values())
        self.step_ms = busy if self._is_cuda else self._scale * sum(span.elapsed_us() for span in spans)

    def _time(self, event: Any) -> float:
        return event.device_time_total if self._is_cuda else event.cpu_time_total

    def _operations(self, events: Sequence[Any]) -> dict[str, tuple[float, float]]:
        times, calls = defaultdict[str, float](float), Counter[str]()
        for event in events:
            if event.scope != _USER_SCOPE:
                times[event.name] += event.self_device_time_total if self._is_cuda else event.self_cpu_time_total
                calls[event.name] += 1
        return {
            name: (time * self._scale, calls[name] * self._scale * 1e3)
            for name, time in sorted(times.items(), key=lambda each: -each[1])
        }

    def _modules(self, events: Sequence[Any], flops: Mapping[str, int]) -> dict[str, ModuleCost]:
        forward, backward = defaultdict[str, float](float), defaultdict[str, float](float)
        around = defaultdict[int, list[str]](list)
        for event in events:
            if event.name.startswith(self._prefix) and event.scope == _USER_SCOPE:
                forward[event.name] += self._time(event)
            elif event.sequence_nr >= 0 and not event.name.startswith(_BACKWARD):
                around[event.sequence_nr] = around[event.sequence_nr] or [*self._around(event)]
        for event in events:
            if event.name.startswith(_BACKWARD):
                for name in around.get(event.sequence_nr, ()):
                    backward[name] += self._time(event)
        scale, by_name = self._scale, {key: key.removeprefix(self._prefix) for key in forward}
        costs = {
            text: ModuleCost(forward[key] * scale, backward[key] * scale, flops.get(text.split(" ")[0]))
            for key, text in by_name.items()
        }
        return dict(sorted(costs.items(), key=lambda each: -each[1].forward_ms - each[1].backward_ms))

    def _around(self, event: Any) -> Iterator[str]:
        """Yield the modules in which an operation was called; its gradient is walked back under its number."""
        parent = event.cpu_parent
        while parent is not None:
            if parent.name.startswith(self._prefix):
                yield parent.name
            parent = parent.cpu_parent


def _total(times: Iterable[float]) -> float:
    return float(sum(times))
