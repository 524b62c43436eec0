"""What is trained beside the weights of a checkpoint: parameters outside the model, and which parameters at all."""

from collections.abc import Mapping
from typing import Any

import torch

from vision3d_engine.core.errors import CheckpointError, listed, shortened
from vision3d_engine.distributed.parallel.wrapping import outside_parameters, unwrap_model


class TrainedState:
    """Saves and restores what only the optimizer holds (learnable weights of losses), and what is frozen.

    Args:
        trainer: whose model and optimizer count, as they are at the time.
        settings: ``on_resume`` says whether the script's or the checkpoint's choice of frozen parameters is in force.
    """

    def __init__(self, trainer: Any, settings: Any) -> None:
        self._trainer, self._settings = trainer, settings

    def state(self) -> dict[str, Any]:
        """Return the values of parameters outside the model by their place in the optimizer, and the frozen names."""
        frozen = [name for name, parameter in self._parameters() if not parameter.requires_grad]
        return {"outside": self._outside(), "frozen": frozen}

    def _parameters(self) -> list[tuple[str, torch.Tensor]]:
        named = unwrap_model(self._trainer.model).named_parameters()
        return [(name, each) for name, each in named if each.is_floating_point() or each.is_complex()]

    def _outside(self) -> dict[str, torch.Tensor]:
        found = outside_parameters(self._trainer.model, self._trainer.optimizer)
        return {name: tensor.detach() for name, tensor in found.items()}

    def restore(self, saved: Mapping[str, Any], source: str) -> None:
        """Take over what was saved; a file of an older engine says nothing.

        Raises:
            CheckpointError: when parameters outside the model are missing or of another shape.
        """
        own, values = self._outside(), saved.get("outside") or {}
        if misfits := [name for name, value in values.items() if name not in own or own[name].shape != value.shape]:
            message = (
                f"'{source}' holds values of {listed(misfits)}, parameters outside the model, which this optimizer has "
                f"not or in another shape (it has: {listed(own)}). Build it as the run that wrote it has"
            )
            raise CheckpointError(message)
        for name, value in values.items():
            own[name].copy_(value)
        if "frozen" in saved and self._settings.on_resume == "keep":
            self._freeze(set(saved["frozen"]))

    def _freeze(self, frozen: set[str]) -> None:
        """Let the parameters require grad that did so when the checkpoint was saved, and say which that changes."""
        changed = [(name, each) for name, each in self._parameters() if each.requires_grad is (name in frozen)]
        for name, parameter in changed:
            parameter.requires_grad_(name not in frozen)
        if changed:
            names = shortened([name for name, _ in changed], 4)
            self._trainer.log(
                f"frozen or trained as in the checkpoint, and not as the script has it: {names}. For the script's "
                "choice set trainer.on_resume: config",
                level="WARNING",
            )
