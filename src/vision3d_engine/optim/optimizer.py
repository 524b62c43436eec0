"""A torch optimizer by name, and torch's fastest kernels for it."""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from vision3d_engine.core.config import read_section
from vision3d_engine.core.errors import ConfigError, RegistrationError, did_you_mean, listed
from vision3d_engine.optim.parameter_groups import ParameterGroups


def build_optimizer(model: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    """Build ``torch.optim.<cfg.optimizer.type>`` for all parameters of a model, in groups if there are rules for them.

    Keys of ``cfg.optimizer`` that are no rules (`OptimizerSettings`) are its arguments: ``{"type": "SGD", "lr": 0.1,
    "momentum": 0.9}``. What a rule freezes does not require grad from then on, and is in no group.

    Raises:
        ConfigError: for an unknown type or argument, a value that torch refuses, or a rule that acts on no parameter.
    """
    section = read_section(cfg, "optimizer")
    arguments = dict(section.model_extra or {})
    kind = _optimizer_class(section.type)
    _check_arguments(kind, section, arguments)
    if not section.has_rules:
        return _built(kind, model.parameters(), arguments)
    groups = ParameterGroups(model, section, arguments.get("lr", inspect.signature(kind).parameters["lr"].default))
    optimizer = _built(kind, groups.groups(), arguments)
    for parameter in groups.frozen():
        parameter.requires_grad_(False)
    return optimizer


def _built(kind: Any, parameters: Any, arguments: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        return kind(parameters, **arguments)
    except (TypeError, ValueError) as error:
        message = f"torch.optim.{kind.__name__} refuses cfg.optimizer: {error} (got {arguments})"
        raise ConfigError(message) from error


def choose_kernels(
    optimizers: Mapping[str | None, Any], model: nn.Module, is_wanted: bool, is_scaled: bool
) -> Iterator[tuple[str, str]]:
    """Turn on fused kernels if they are wanted, where there are any; yield what to say, with its level.

    Args:
        optimizers: by name.
        model: what they train.
        is_wanted: whether to turn them on.
        is_scaled: losses are scaled, so that an optimizer without them waits for the device.
    """
    for optimizer in optimizers.values():
        kind = type(optimizer).__name__
        if is_wanted and prefer_fused(optimizer, model):
            yield f"optimizer: fused kernels ({kind})", "DEBUG"
        elif is_scaled and not all(group.get("fused") for group in optimizer.param_groups):
            yield f"{kind} has no fused kernels here: fp16 waits for the device once an update", "INFO"


def prefer_fused(optimizer: Any, model: nn.Module | None = None) -> bool:
    """Turn on torch's fused kernels (one for all parameters) where torch has them; tell whether that was done.

    Nothing changes when the user chose a kernel (``fused``, ``foreach``), when the optimizer has made a step, is not
    one of ``torch.optim``, or holds what the kernels do not take: other types or devices, sparse gradients. See
    https://docs.pytorch.org/docs/stable/optim.html. Numbers differ from the other kernels' in their last bits.
    """
    parameters = [parameter for group in getattr(optimizer, "param_groups", ()) for parameter in group["params"]]
    kinds = {(parameter.device, parameter.dtype) for parameter in parameters}
    if not _may_be_fused(optimizer, parameters, model) or not all(_has_fused(type(optimizer), *kind) for kind in kinds):
        return False
    for group in optimizer.param_groups:
        group["fused"] = True
    optimizer._step_supports_amp_scaling = True  # noqa: SLF001  as torch's constructor says of fused kernels to GradScaler
    return True


def _may_be_fused(optimizer: Any, parameters: list[Any], model: nn.Module | None) -> bool:
    """Tell whether neither the user's choice nor the parameters stand against fused kernels."""
    is_torchs = type(optimizer).__module__.startswith("torch.optim") and "fused" in optimizer.defaults
    # Torch's fused SGD needs all gradients from the first step on, and begins its momentum with whatever is in memory
    # when that step is skipped.
    has_momentum = isinstance(optimizer, torch.optim.SGD) and any(g["momentum"] for g in optimizer.param_groups)
    if not is_torchs or has_momentum or any(map(_has_chosen, optimizer.param_groups)):
        return False
    if not all(_is_untouched(parameter, state) for parameter, state in optimizer.state.items()):
        return False
    is_sparse = model is not None and any(getattr(module, "sparse", False) for module in model.modules())
    return not is_sparse and all(type(parameter) is nn.Parameter for parameter in parameters)


def _has_chosen(group: dict[str, Any]) -> bool:
    """Tell whether the user chose a kernel for a group; False is a choice too where None leaves it to torch."""
    is_set = any(group.get(name) is not None for name in ("fused", "foreach"))
    return is_set or any(group.get(name) for name in ("capturable", "differentiable"))


def _is_untouched(parameter: Any, state: dict[str, Any]) -> bool:
    """Tell whether fused kernels can begin with a state, such as the one that Adagrad makes before any step."""
    step = state.get("step")
    if not isinstance(step, torch.Tensor) or step.dtype != torch.float32:
        return False
    return parameter.device.type == step.device.type == "cpu" and step.item() == 0


def _has_fused(kind: Any, device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether torch makes a fused step on a device, by making one with one number."""
    try:
        number = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
        number.grad = torch.zeros_like(number)
        kind([number], lr=1e-3, fused=True).step()
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return False
    return True


def _optimizer_class(name: str) -> Any:
    base = torch.optim.Optimizer
    kinds = {key: value for key, value in vars(torch.optim).items() if isinstance(value, type)}
    known = [key for key, value in kinds.items() if issubclass(value, base) and value is not base]
    if name not in known:
        message = f"cfg.optimizer.type is '{name}'{did_you_mean(name, known)} (torch.optim has: {listed(known)})"
        raise ConfigError(message)
    return getattr(torch.optim, name)


def _check_arguments(optimizer: Any, section: Any, arguments: dict[str, Any]) -> None:
    known = [name for name in inspect.signature(optimizer).parameters if name != "params"]
    rules = [name for name in type(section).model_fields if name != "type"]
    for name in [name for name in arguments if name not in known]:
        hint = did_you_mean(name, known) or did_you_mean(name, rules, similarity=0.75)
        has = f"it has: {listed(known)}; settings of groups are: {listed(rules)}"
        raise ConfigError(f"cfg.optimizer.{name} is not an argument of {optimizer.__name__}{hint} ({has})")
    sets_decay = section.no_decay_on_norm_and_bias or any(rule.weight_decay is not None for rule in section.param_rules)
    if sets_decay and "weight_decay" not in known:
        message = f"torch.optim.{optimizer.__name__} has no weight decay: remove it from the rules of cfg.optimizer"
        raise ConfigError(message)


def refuse_foreign(optimizers: Mapping[str | None, Any], model: nn.Module) -> None:
    """Refuse an optimizer that would train nothing of the model, such as one of another copy of it.

    Args:
        optimizers: by name; the only one may have none.
        model: the registered model, or several in one.

    Raises:
        RegistrationError: when none of its parameters is the model's, or several optimizers share some.
    """
    own = {id(parameter) for parameter in model.parameters()}
    owners: dict[int, Any] = {}
    for name, optimizer in optimizers.items():
        held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        if held and not own.intersection(held):
            raise RegistrationError(_foreign_text(name, optimizer, len(held), model))
        if (other := next((owners[each] for each in held if each in owners), name)) != name:
            message = f"the optimizers '{other}' and '{name}' hold the same parameters, which both would change: give "
            raise RegistrationError(message + "each parameter to one of them")
        owners |= dict.fromkeys(held, name)


def _foreign_text(name: str | None, optimizer: Any, count: int, model: nn.Module) -> str:
    title = f"'{name}' ({type(optimizer).__name__})" if name else f"({type(optimizer).__name__})"
    return (
        f"the optimizer {title} holds {count} parameters, none of which is one of the registered model's "
        f"({type(model).__name__}), so the model would not learn. Build it from self.model.parameters() after "
        "register_model, which may replace them"
    )
