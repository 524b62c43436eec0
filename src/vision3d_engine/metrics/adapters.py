"""Metrics of any library, used in the same way: this engine's, torchmetrics', and what has the same few methods."""

import copy
import io
import pickle
import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.errors import RegistrationError, ResultError, listed
from vision3d_engine.core.portable import decoded, encoded, has_state
from vision3d_engine.core.tree import describe, map_leaves
from vision3d_engine.metrics.torchmetrics_parts import all_parts, is_of_torchmetrics, merge, unmerged
from vision3d_engine.metrics.whole_set import WholeSetMetric

# How many numbers of one vector are in summaries and curves: the classes of ScanNet200 are.
_LONGEST = 256
_METHODS = ("update", "compute", "reset")


class MetricState:
    """What one pass knows of a registered metric: a copy of it, which starts empty.

    Args:
        registered: the script's object, which stays as it is.

    Attributes:
        metric: the copy.
    """

    #: Whether `undo` takes back what a step has counted.
    can_undo = False

    def __init__(self, registered: Any) -> None:
        self.metric = copy.deepcopy(registered)
        self.metric.reset()
        self.count = 0

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch, as the metric does."""
        self.count += 1
        self.metric.update(*args, **kwargs)

    def mark(self) -> Any:
        """Return what `undo` needs to come back to here; it costs no copy."""
        return self.count

    def has_counted_since(self, mark: Any) -> bool:
        """Tell whether there were updates since a mark."""
        return self.count != mark

    def undo(self, mark: Any) -> None:
        """Come back to a mark, where that can be done."""

    def undo_unless(self, is_right: torch.Tensor, mark: Any) -> None:
        """Come back to a mark unless a flag on the device is set, which is not read; where that can be done."""

    @property
    def has_state(self) -> bool:
        """Whether a checkpoint can hold it."""
        return has_state(self.metric)

    def state_dict(self) -> Any:
        """Return its state as data on the host."""
        return encoded(on_host(self.metric.state_dict()))

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state."""
        self.metric.load_state_dict(decoded(state))

    def merge(self, others: Iterable[Any]) -> None:
        """Take in the metrics of other parts of the set, which come behind this one's."""
        try:
            self.metric.merge_state(list(others))
        except Exception as error:
            message = (
                f"merge_state of a registered {type(self.metric).__name__} raised {type(error).__name__}: {error}. "
            )
            message += "It gets a list of the same metric of other processes: def merge_state(self, others)"
            raise ResultError(message) from error

    def compute(self) -> Any:
        """Return the metric's number or numbers."""
        return self.metric.compute()

    def packed(self) -> bytes:
        """Return the metric as bytes, from which `unpacked` makes it on the host of any process."""
        buffer = io.BytesIO()
        torch.save(self.metric, buffer)
        return buffer.getvalue()


def unpacked(packed: bytes) -> Any:
    """Return a metric of another process of this run, on the host."""
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=False)


class SumsState(MetricState):
    """One of a `WholeSetMetric`, whose sums are never changed in place."""

    can_undo = True

    def mark(self) -> Any:
        """Return its sums."""
        return self.metric.sums

    def undo(self, mark: Any) -> None:
        """Come back to a mark."""
        self.metric.undo(mark)

    def undo_unless(self, is_right: torch.Tensor, mark: Any) -> None:
        """Come back to a mark unless a flag on the device is set, which is not read."""
        self.metric.undo_unless(is_right, mark)


class TorchmetricsState(MetricState):
    """One of torchmetrics' ``Metric`` or ``MetricCollection``; it exchanges nothing with other processes itself."""

    def __init__(self, registered: Any) -> None:
        super().__init__(registered)
        for part in all_parts(self.metric):
            part.persistent(mode=True)
            part.distributed_available_fn = _is_never_distributed
            part.compute_with_cache = False  # a merge would not be noticed
        self._device: torch.device | None = None

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch, on the device of its first tensor."""
        tensors = (each for each in chain(args, kwargs.values()) if isinstance(each, torch.Tensor))
        device = next((each.device for each in tensors), self._device)
        if device is not None and device != self._device:
            self._device = device
            self.metric.to(device)
        super().update(*args, **kwargs)

    def load_state_dict(self, state: Any) -> None:
        """Go on from a state, which is on the host until the next update."""
        super().load_state_dict(state)
        self._device = None

    def merge(self, others: Iterable[Any]) -> None:
        """Take in others, in whose lists this one's samples come behind: torchmetrics puts what comes in first."""
        for other in others:
            merge(self.metric, other)

    def compute(self) -> Any:
        """Return the metric's number or numbers."""
        with warnings.catch_warnings():  # a state that was loaded counts no updates
            warnings.filterwarnings("ignore", message=r"The ``compute`` method of metric")
            return self.metric.compute()

    def packed(self) -> bytes:
        """Return the metric as bytes; it is on the host then, since it remembers its device."""
        self.metric.to("cpu")
        self._device = None
        return super().packed()


def _is_never_distributed() -> bool:
    return False


def state_of(registered: Any) -> MetricState:
    """Return an empty state of a registered metric."""
    if isinstance(registered, WholeSetMetric):
        return SumsState(registered)
    return TorchmetricsState(registered) if is_of_torchmetrics(registered) else MetricState(registered)


def merged(registered: Any, packed: list[bytes]) -> MetricState:
    """Return what several processes have counted, given in rank order; the same on each of them."""
    parts, whole = [unpacked(each) for each in packed], state_of(registered)
    if isinstance(whole, TorchmetricsState):
        parts.reverse()
    if parts:
        whole.metric = parts[0]
        whole.merge(parts[1:])
    return whole


def trace_of(registered: Any) -> Any:
    """Return what is equal until the script updates the object itself; None where that cannot be told."""
    if is_of_torchmetrics(registered):
        return [part.update_count for part in all_parts(registered)]
    if isinstance(registered, WholeSetMetric):
        return pickle.dumps({name: held.tolist() for name, held in registered.sums.items()})
    return None


def check_metric(name: str, metric: Any, processes: int) -> None:
    """Refuse what is no metric, and on several processes what could not be merged.

    Raises:
        RegistrationError: saying what it lacks, and what to do.
    """
    if isinstance(metric, type):
        message = f"register_metric('{name}') got the class {metric.__name__}; expected an object of it: "
        raise RegistrationError(f"{message}{metric.__name__}(...)")
    methods = _METHODS if processes == 1 or is_of_torchmetrics(metric) else (*_METHODS, "merge_state")
    if missing := [each for each in methods if not callable(getattr(metric, each, None))]:
        message = f"register_metric('{name}') got {describe(metric)}, which has no {listed(missing)}"
        several = "; on several processes merge_state(others) takes in those of the others"
        raise RegistrationError(message + (several if "merge_state" in missing else ""))
    if processes > 1:
        _check_exchange(name, metric)


def _check_exchange(name: str, metric: Any) -> None:
    """Refuse what torchmetrics does not merge, and what does not travel between processes."""
    if is_of_torchmetrics(metric) and (refused := unmerged(metric)):
        message = f"register_metric('{name}'): torchmetrics merges no state of {listed(refused)}, so it has no number "
        message += "on several processes; choose another metric, or keep records by add_records and compute it over "
        raise RegistrationError(message + "gather_records()")
    try:
        state_of(metric).packed()
    except Exception as error:
        message = (
            f"register_metric('{name}') got {describe(metric)}, which cannot be pickled: {error}. Between several "
        )
        raise RegistrationError(message + "processes it travels so: define its class at the top of a module") from error


def on_host(state: Any) -> Any:
    """Return a nest with its tensors on the host."""
    return map_leaves(lambda leaf: leaf.detach().cpu() if isinstance(leaf, torch.Tensor) else leaf, state)


class Flat(NamedTuple):
    """What a metric has computed, for a summary.

    Attributes:
        numbers: by their keys.
        rows: which of them are of one class, as column and row.
        left_out: keys of matrices and long vectors.
    """

    numbers: dict[str, float]
    rows: dict[str, tuple[str, str]]
    left_out: list[str]


def flat_numbers(name: str, computed: Any) -> Flat:
    """Return a metric's numbers by their keys in a summary.

    A single number is called as the metric is, others ``NAME/KEY``, those of a vector ``NAME/0`` and so on. Each tensor
    is read once.
    """
    flat = Flat({}, {}, [])
    for key, value in (computed if isinstance(computed, Mapping) else {"": computed}).items():
        column = f"{name}/{key}" if key != "" else name
        found = _read(column, value)
        if found is None:
            flat.left_out.append(column)
        elif isinstance(found, list):
            flat.numbers.update({f"{column}/{row}": each for row, each in enumerate(found)})
            flat.rows.update({f"{column}/{row}": (column, str(row)) for row in range(len(found))})
        else:
            flat.numbers[column] = found
            family, _, row = str(key).partition("/")
            flat.rows.update({column: (f"{name}/{family}", row)} if row else {})
    return flat


def _read(name: str, value: Any) -> float | list[float] | None:
    """Return a number, or those of a vector, None of what has too many; waits for the device."""
    values = value.tolist() if hasattr(value, "tolist") else value
    try:
        read = torch.as_tensor(values if isinstance(values, list | tuple) else float(values), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        message = (
            f"compute() of a registered metric gave {describe(value)} as '{name}'; expected a number, a tensor of "
        )
        raise ResultError(message + "some, or a dict of these by name") from error
    if read.numel() == 1:
        return read.item()
    return read.tolist() if read.ndim == 1 and len(read) <= _LONGEST else None
