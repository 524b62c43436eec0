"""Whether a run ends, where, and why: enough epochs or updates, a request of the script, no more improvement."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from vision3d_engine.core.errors import ConfigError, RegistrationError
from vision3d_engine.distributed.coordination.reductions import Sums
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.run_length import RunLength
from vision3d_engine.run.early_stopping import choose_early_stopping

_REQUEST = "request to end the run"
_EXTEND = "--resume with a larger {} goes on"


class End(NamedTuple):
    """Why a run ends, and what makes it go on."""

    reason: str
    remedy: str


class Ending:
    """Knows whether and where a run ends, the same on all processes.

    `stop` may be called by one process alone. In training the others learn of it in the sums of the next log line, and
    all end at the update that is due then; else, at the end of the epoch. An epoch that is cut so, or by
    ``trainer.max_updates``, is closed (validated, saved) like any other, but stays open for whoever extends the run.

    Args:
        context: settings, processes, counters.

    Attributes:
        early_stopping: whether validations still get better.
        due_at: number of updates from which on a training pass shall call `cut`.
        is_cut: the open epoch was cut, and is to be closed; then the run ends.
    """

    def __init__(self, context: PassContext) -> None:
        self._world, self._progress = context.world, context.progress
        self._length = RunLength.of(context.settings)
        self.early_stopping = choose_early_stopping(context.settings)
        self.due_at = math.inf
        self.is_cut = self._is_running = False
        self._requested: str | None = None
        self._restored: str | None = None  # a request of the run that is resumed, which waited for a log line
        self._agreed: str | None = None
        self._closed_at: int | None = None  # number of updates at which a cut epoch was closed
        self._set_due()

    # ------------------------------------------------------------------------------------------- requests

    def stop(self, reason: str | None) -> None:
        """Ask for the end of the run; see `BaseTrainer.stop`."""
        if not self._is_running:
            message = "stop() ends a run, and none is running: call it in a hook or in a step"
            raise RegistrationError(message)
        if self._requested is None:
            self._requested = reason or ""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take requests while a block runs; what is left of them when it has ended well counts no more."""
        self._is_running = True
        try:
            yield
            self._requested = self._restored = self._agreed = None
            self.is_cut = False
            self._set_due()
        finally:
            self._is_running = False

    @property
    def _own(self) -> str | None:
        return self._restored if self._requested is None else self._requested

    def forget_request(self) -> bool:
        """Forget what has ended the run, so that a resume goes on; tell whether it was a request."""
        was_asked, self._agreed = self._agreed is not None, None
        return was_asked

    def shared(self) -> dict[str, torch.Tensor | None]:
        """Return what travels in the sums of a log line: nothing, where no process has asked for the end."""
        return {_REQUEST: None if self._own is None else torch.ones((), device=self._world.device)}

    def hear(self, sums: Sums) -> None:
        """Learn from the sums of a log line whether any process has asked; to be called by all of them."""
        if _REQUEST in sums:
            self._agree(self._own)

    def _agree(self, own: str | None) -> None:
        """Take over what any process has asked for; to be called by all of them."""
        if (found := self._first(own)) is not None:
            self._requested = self._restored = None
            self._agreed = found if self._agreed is None else self._agreed
        self._set_due()

    def _first(self, own: str | None) -> str | None:
        """Return the request of the first process that has one; to be called by all of them."""
        return next((each for each in self._world.gather(own) if each is not None), None)

    # ------------------------------------------------------------------------------------------- ends

    def _set_due(self) -> None:
        ends_now = self._agreed is not None or self.early_stopping.reason() is not None
        self.due_at = 0 if ends_now else self._length.max_updates or math.inf

    def cut(self) -> None:
        """End the training of the open epoch at this update."""
        self.is_cut = True

    def judge(self, numbers: Mapping[str, float]) -> str | None:
        """Take in the numbers of a validation, the same on all processes; return what there is to be warned of.

        That of a cut epoch does not count, since the epoch is still to be trained and validated if the run goes on.
        """
        warning = None if self.is_cut else self.early_stopping.judge(numbers, self._progress.epoch)
        self._set_due()
        return warning

    def goes_on(self) -> bool:
        """Tell whether an epoch is to be trained, or an open one to be closed; to be called by all before each.

        A resume in mid-epoch leaves what was asked for before to the log line at which it would have been heard.
        """
        if self._progress.is_open and (self._progress.is_trained or self.is_cut or self._is_cut_due()):
            return True
        self._agree(self._requested if self._progress.is_open else self._own)
        return self._end() is None

    def _is_cut_due(self) -> bool:
        """Tell whether the open epoch was on its way to its cut, and has not been closed there before."""
        progress = self._progress
        return progress.trained > 0 and progress.updates >= self.due_at and self._closed_at != progress.updates

    @property
    def is_finished(self) -> bool:
        """Whether the open epoch was cut and closed, and nothing lets it go on."""
        progress = self._progress
        return progress.is_open and self._closed_at == progress.updates and progress.updates >= self.due_at

    def ends_with_epoch(self) -> bool:
        """Tell whether the run ends with the epoch that is trained by now; to be called by all processes."""
        self._agree(self._own)
        is_last = self._length.max_epoch is not None and self._progress.epoch >= self._length.max_epoch
        return is_last or self.is_cut or self._end() is not None

    def _end(self) -> End | None:
        """Return why the run ends between epochs, or in the midst of one; None while it goes on."""
        progress, length = self._progress, self._length
        if self._agreed is not None:
            return End(f"stop() was called{self._agreed and ': '}{self._agreed}", "--resume goes on")
        if (text := self.early_stopping.reason()) is not None:
            return End(text, _EXTEND.format("trainer.early_stopping_patience"))
        if length.max_updates is not None and progress.updates >= length.max_updates:
            return End(f"{progress.updates:,} updates are made", _EXTEND.format("trainer.max_updates"))
        if length.max_epoch is not None and progress.epoch >= length.max_epoch and not progress.is_open:
            return End(f"{progress.epoch:,} epochs are trained", _EXTEND.format("trainer.max_epoch"))
        return None

    def text(self, has_trained: bool) -> str | None:
        """Say why the run ends; nothing where it was trained for all its epochs.

        Args:
            has_trained: whether it had an epoch to train, or to close, at all.
        """
        end, progress = self._end(), self._progress
        if end is None or (has_trained and end.remedy == _EXTEND.format("trainer.max_epoch")):
            return None
        where = f"epoch {progress.epoch}, total_steps {progress.total_steps}, {progress.updates} updates"
        kind = "the run ends" if has_trained or self._agreed is not None else "the run is finished, nothing is trained"
        return f"{kind} ({where}): {end.reason}. {end.remedy}"

    def refuse_endless(self) -> None:
        """Refuse to count the updates of a ``train_epoch`` that makes none; called when an epoch is trained.

        Raises:
            ConfigError: when nothing else ends the run.
        """
        if self._length.max_epoch is None and self._progress.trained == 0:
            message = (
                "trainer.max_updates counts the updates of the engine's own train_epoch, and this one is a loop of "
                "the script's own: give trainer.max_epoch, or end the run by stop()"
            )
            raise ConfigError(message)

    # ------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """Return what a resume goes on with; to be called by all processes."""
        requested = self._first(self._own)
        state = {"early_stopping": self.early_stopping.state_dict(), "agreed": self._agreed}
        return state | {"requested": requested, "is_cut": self.is_cut, "closed_at": self._closed_at}

    def closed_state(self) -> dict[str, Any]:
        """Return what a resume goes on with when the last epoch is closed: `after_train` may still be to come."""
        self._closed_at = self._progress.updates
        state = {"early_stopping": self.early_stopping.state_dict(), "agreed": self._agreed}
        return state | {"closed_at": self._closed_at}

    def begin_anew(self) -> None:
        """Forget whatever has ended a run that was loaded."""
        self._requested = None
        self.load_state_dict({})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        progress = self._progress
        self._restored = state.get("requested")
        self._agreed, self._closed_at = state.get("agreed"), state.get("closed_at")
        self.early_stopping.load_state_dict(state.get("early_stopping") or {})
        self._set_due()
        self.is_cut = bool(state.get("is_cut")) and progress.is_open and progress.updates >= self.due_at
