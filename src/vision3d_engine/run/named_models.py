"""Several models by name, which the engine treats as one."""

from torch import nn

from vision3d_engine.core.errors import RegistrationError


class NamedModels(nn.ModuleDict):
    """Several models of one trainer or tester, by name."""

    def add(self, name: str, model: nn.Module) -> "NamedModels":
        """Add one; return all.

        Raises:
            RegistrationError: for a name that is taken, or that a module cannot have.
        """
        if name in self:
            message = f"register_model(name='{name}'): this name is taken; choose another one"
            raise RegistrationError(message)
        try:
            self[name] = model
        except KeyError as error:
            message = f"register_model(name='{name}'): a torch.nn.ModuleDict cannot hold it ({error}); choose another"
            raise RegistrationError(message) from error
        return self
