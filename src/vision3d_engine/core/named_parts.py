"""Parts of one kind by name, which the engine treats as one."""

from collections.abc import Mapping
from typing import Any

from vision3d_engine.core.errors import RegistrationError, did_you_mean, listed


class NamedParts:
    """Optimizers, schedules and the like by name: ``parts["generator"]`` is the user's own object.

    Attributes:
        kind: what they are, for messages.
        parts: the user's objects by name, in the order of registration.
    """

    kind = "part"

    def __init__(self) -> None:
        self.parts: dict[str, Any] = {}

    def add(self, name: str, part: Any) -> None:
        """Add one under a name of its own.

        Raises:
            RegistrationError: when the name is taken, or the object is here already.
        """
        for other, one in self.parts.items():
            if other == name or one is part:
                message = f"register_{self.kind}(name='{name}'): the {self.kind} '{other}' is registered already"
                raise RegistrationError(f"{message}; register each one once, under a name of its own")
        self.parts[name] = part

    def __getitem__(self, name: str) -> Any:
        """Return one.

        Raises:
            RegistrationError: for a name that nobody has registered.
        """
        if name not in self.parts:
            hint = did_you_mean(name, self.parts)
            message = f"there is no {self.kind} '{name}'{hint} (registered: {listed(self.parts)})"
            raise RegistrationError(message)
        return self.parts[name]

    def state_dict(self) -> dict[str, Any]:
        """Return their states by name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over states by name."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def class_name(part: Any) -> str:
    """Return the class of a part; of several by name each one's."""
    if isinstance(part, NamedParts):
        return ", ".join(f"{name}: {type(each).__name__}" for name, each in part.parts.items())
    return type(part).__name__
