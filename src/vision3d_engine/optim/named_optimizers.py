"""Several optimizers by name, which the engine treats as one."""

from dataclasses import dataclass
from itertools import chain
from typing import Any

from vision3d_engine.core.errors import RegistrationError
from vision3d_engine.core.named_parts import NamedParts


@dataclass(frozen=True)
class GradientLimits:
    """What the gradients of one optimizer are clipped to; None leaves it to the settings ``trainer.*``."""

    clip_grad_norm: float | None = None
    clip_grad_value: float | None = None

    def __post_init__(self) -> None:
        """Refuse limits that are none."""
        for name, limit in vars(self).items():
            if limit is not None and not limit > 0:
                message = f"register_optimizer got {name}={limit}; expected a number above 0, or None for no limit"
                raise RegistrationError(message)


class NamedOptimizers(NamedParts):
    """Optimizers by name: their groups lie one after the other, their states are by name.

    Attributes:
        limits: what each one's gradients are clipped to.
    """

    kind = "optimizer"

    def __init__(self) -> None:
        super().__init__()
        self.limits: dict[str, GradientLimits] = {}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all of them, one after the other."""
        return list(chain.from_iterable(each.param_groups for each in self.parts.values()))

    def step(self) -> None:
        """Let each of them make a step."""
        for optimizer in self.parts.values():
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all of them."""
        for optimizer in self.parts.values():
            optimizer.zero_grad(set_to_none=set_to_none)


def with_named(registered: Any, name: str, optimizer: Any, limits: GradientLimits) -> NamedOptimizers:
    """Return the optimizers of a trainer with one more.

    Raises:
        RegistrationError: when there is one without a name, or for a name that is taken.
    """
    if registered is not None and not isinstance(registered, NamedOptimizers):
        message = f"register_optimizer(name='{name}'): {type(registered).__name__} is registered without a name, and "
        raise RegistrationError(message + "would be driven by every loss; give both a name")
    named = NamedOptimizers() if registered is None else registered
    named.add(name, optimizer)
    named.limits[name] = limits
    return named


def optimizers_of(optimizer: Any) -> dict[str | None, Any]:
    """Return optimizers by name; the only one, which has none, under None."""
    return {**optimizer.parts} if isinstance(optimizer, NamedOptimizers) else {None: optimizer}
