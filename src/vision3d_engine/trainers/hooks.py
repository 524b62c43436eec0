"""The steps and hooks that a trainer may have, in the order in which they act."""

import abc
from typing import Any

from vision3d_engine.core.errors import RegistrationError


class TrainHooks:
    """Two steps to implement, and moments to act at; what is not overridden costs nothing."""

    def before_load(self, metadata: dict[str, int]) -> None:
        """Act before a checkpoint is loaded: rebuild what it needs, such as parameter groups that an epoch has added.

        ``metadata`` says its moment: ``epoch``, ``total_steps`` and, of newer files, ``updates`` and ``samples``.
        """

    def before_train(self) -> None:
        """Act once before the first epoch, after a checkpoint has been loaded."""

    def before_train_epoch(self, epoch: int) -> None:
        """Act before a training epoch; the data may still be changed or exchanged.

        A resume in the midst of an epoch calls it again, and then takes model, optimizer, schedule and registered
        states once more from the checkpoint: what is unfrozen or rebuilt here is there, and nothing is advanced twice.
        """

    def before_train_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Act before a training step; the batch is on the device."""

    @abc.abstractmethod
    def train_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return ``output_dict, result_dict`` for a batch; must be implemented.

        ``result_dict["loss"]`` is one number that requires grad; every other value is one number to be logged. Keep
        numbers as tensors: the engine reads them when a log line is due.
        """

    def loss_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> Any:
        """Return how many things ``result_dict["loss"]`` is a mean over: a number, or a tensor of one element.

        Override it when batches hold varying numbers of points, correspondences or samples, so that an accumulated
        update equals that of one big batch. By default every batch counts 1.
        """
        return 1

    def metric_weight(self, data_dict: Any, output_dict: Any, result_dict: Any) -> Any:
        """Return what the results of a step weigh in means: one number for all, or a dict of numbers for single keys.

        A number may be a tensor of one element, which is not read before a log line. A result without weight may be NaN
        (a mean over no correspondences). By default, and for keys that a dict leaves out, results weigh as many samples
        as were drawn for the batch, or 1 where that is not known.
        """
        return None

    def after_backward(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after the backward pass; in the batch that ends a window the gradients are those of the update.

        Before that they are None as long as no batch of the window has had weight (`loss_weight`).

        It is also called for an update in which this process joins without a batch of its own, since gradients must be
        treated alike on all processes.
        """

    def after_train_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after the training step; numbers added to ``result_dict`` are logged."""

    def after_log(self, epoch: int, iteration: int, log_dict: dict[str, float]) -> None:
        """Act after a log line; ``log_dict`` holds its means, over all processes, as numbers on the host."""

    def after_train_epoch(self, epoch: int, summary_dict: dict[str, Any]) -> None:
        """Act after a training epoch; ``summary_dict`` holds the means over the epoch."""

    def before_val_epoch(self, epoch: int) -> None:
        """Act before a validation epoch, once around all its sets; ``self.val_loader`` may still be exchanged."""

    def before_val_step(self, epoch: int, iteration: int, data_dict: Any) -> None:
        """Act before a validation step; the batch is on the device."""

    def val_step(self, epoch: int, iteration: int, data_dict: Any) -> tuple[Any, dict[str, Any]]:
        """Return ``output_dict, result_dict`` for a batch; every result is one number.

        Must be implemented, unless ``trainer.val_every`` is ``never``. Of several validation sets ``self.val_name``
        says which one it is of, and ``iteration`` counts from 1 in each.
        """
        raise RegistrationError(f"{type(self).__name__} has no val_step, which its val_epoch calls; write one")

    def after_val_step(self, epoch: int, iteration: int, data_dict: Any, output_dict: Any, result_dict: Any) -> None:
        """Act after a validation step; numbers added to ``result_dict`` are logged."""

    def after_val_epoch(self, epoch: int, summary_dict: dict[str, Any]) -> None:
        """Act after a validation epoch; numbers added to ``summary_dict`` are logged and can select best models.

        Of several validation sets it holds all numbers, as ``easy/loss`` and so on.
        """

    def after_train(self) -> None:
        """Act once after the last epoch."""
