"""Parameter groups by rules: rates, weight decay and freezing by name or module, and rates that fall with depth."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.core.errors import ConfigError, did_you_mean, shortened
from vision3d_engine.optim.layers import layer_numbers

if TYPE_CHECKING:
    from vision3d_engine.core.optim_settings import OptimizerSettings, ParamRule

_NORM = re.compile(r"Norm(\dd)?$")
_NO_BLOCKS = "no entry of a Sequential or ModuleList has modules of its own"


class _Kind(NamedTuple):
    """What the parameters of a group have in common; groups come in this order.

    Attributes:
        rule: number of the rule; 0 without one.
        depth: layers above it, up to the head.
        is_spared: whether it has no weight decay as a norm or bias.
    """

    rule: int
    depth: int
    is_spared: bool


class ParameterGroups:
    """Sorts the parameters of a model into groups, by the first rule that is about each of them.

    Args:
        model: has the parameters.
        settings: the rules, and what else groups depend on.
        lr: the learning rate that factors refer to.

    Raises:
        ConfigError: for a rule that acts on no parameter, and for layer decay in a model without layers.
    """

    def __init__(self, model: nn.Module, settings: "OptimizerSettings", lr: Any) -> None:
        from vision3d_engine.core.optim_settings import ParamRule

        self._settings, self._lr = settings, lr
        self._rules = (ParamRule(name="default", match=""), *settings.param_rules)
        parameters = list(_parameters(model))
        chosen = [_first(self._rules, parameter) for parameter in parameters]
        _refuse_idle(self._rules, chosen, parameters)
        layers, self._head = _layers(parameters, settings)
        self._members: dict[_Kind, list[nn.Parameter]] = {}
        for parameter, rule, layer in zip(parameters, chosen, layers, strict=True):
            self._members.setdefault(self._kind(parameter, rule, layer), []).append(parameter.tensor)

    def _kind(self, parameter: "_Parameter", number: int, layer: int) -> _Kind:
        """Return what counts for a parameter; what its rule sets itself is neither scaled nor spared."""
        rule, spares = self._rules[number], self._settings.no_decay_on_norm_and_bias
        depth = self._head - layer if rule.lr is None else 0
        is_spared = spares and rule.weight_decay is None and parameter.is_norm_or_bias
        return _Kind(number, depth, is_spared)

    def groups(self) -> list[dict[str, Any]]:
        """Return the groups for an optimizer: first ``default``, of no rule, then those of the rules in their order.

        Layers and what has no weight decay have groups of their own, named ``default/layer_2/no_decay``.
        """
        kinds = [kind for kind in sorted(self._members) if not self._rules[kind.rule].freeze]
        return [{"params": self._members[kind], **self._options(kind)} for kind in kinds]

    def frozen(self) -> list[nn.Parameter]:
        """Return the parameters that are in no group, and shall not be trained."""
        frozen = [kind for kind in self._members if self._rules[kind.rule].freeze]
        return [parameter for kind in frozen for parameter in self._members[kind]]

    def _options(self, kind: _Kind) -> dict[str, Any]:
        rule = self._rules[kind.rule]
        parts = [rule.title]
        parts += [f"layer_{self._head - kind.depth}"] if kind.depth else []
        parts += ["no_decay"] if kind.is_spared else []
        factor = rule.lr_factor * (self._settings.layer_decay or 1.0) ** kind.depth
        options = {"name": "/".join(parts), "lr": self._lr * factor if rule.lr is None else rule.lr}
        decay = 0.0 if kind.is_spared else rule.weight_decay
        return options if decay is None else {**options, "weight_decay": decay}


@dataclass(frozen=True)
class _Parameter:
    """A parameter, and where it lies: under several names if it is tied.

    Attributes:
        tensor: the parameter itself.
        modules: the modules on its way by each name, from the model itself down to the one that has it.
    """

    tensor: nn.Parameter
    modules: dict[str, list[nn.Module]]

    def is_meant_by(self, rule: "ParamRule") -> bool:
        """Tell whether a rule is about it, under one of its names."""
        return any(
            (rule.match is None or re.search(rule.match, name) is not None)
            and (rule.module is None or any(rule.module in _classes(module) for module in modules))
            for name, modules in self.modules.items()
        )

    @property
    def is_norm_or_bias(self) -> bool:
        """Whether it is a bias, belongs to a norm, or has one dimension or none."""
        is_bias = any(name.rpartition(".")[2] == "bias" for name in self.modules)
        is_norm = any(_NORM.search(name) for modules in self.modules.values() for name in _classes(modules[-1]))
        return is_bias or is_norm or (not is_lazy(self.tensor) and self.tensor.ndim <= 1)


def _classes(module: nn.Module) -> list[str]:
    """Return the names of a module's class and of those that it is derived from."""
    return [kind.__name__ for kind in type(module).__mro__]


def _parameters(model: nn.Module) -> Iterator[_Parameter]:
    """Yield the parameters in the model's order."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names.setdefault(tensor, []).append(name)
    for tensor, own in names.items():
        yield _Parameter(tensor, {name: _way(model, name) for name in own})


def _way(model: nn.Module, name: str) -> list[nn.Module]:
    parts = name.split(".")
    return [model.get_submodule(".".join(parts[:count])) for count in range(len(parts))]


def _first(rules: Sequence["ParamRule"], parameter: _Parameter) -> int:
    """Return the number of the first rule about a parameter; 0, that of the rest, for none."""
    return next((number for number, rule in enumerate(rules) if number and parameter.is_meant_by(rule)), 0)


def _refuse_idle(rules: Sequence["ParamRule"], chosen: Sequence[int], parameters: Sequence[_Parameter]) -> None:
    """Refuse a rule without an effect: it is misspelt, or stands behind one that takes all that it is about."""
    for number in [number for number in range(1, len(rules)) if number not in chosen]:
        rule, where = rules[number], f"cfg.optimizer.param_rules[{number - 1}] ({rules[number].condition})"
        others = {chosen[place] - 1 for place, each in enumerate(parameters) if each.is_meant_by(rule)}
        if others:
            message = (
                f"{where} acts on no parameter: the first rule about a parameter counts, and all that this one is "
                f"about are taken by {shortened([f'param_rules[{other}]' for other in sorted(others)])}. Put it in "
                "front, or remove it"
            )
            raise ConfigError(message)
        raise ConfigError(f"{where} is about no parameter{_nearest(rule, parameters)}. Correct it, or remove it")


def _nearest(rule: "ParamRule", parameters: Sequence[_Parameter]) -> str:
    """Return what is near to that which a rule is about, and what there is."""
    ways = [way for each in parameters for way in each.modules.values()]
    classes = list(dict.fromkeys(type(module).__name__ for way in ways for module in way))
    if rule.module is not None and rule.module not in classes:
        return f"{did_you_mean(rule.module, classes)} (classes of modules: {shortened(classes)})"
    names = [name for each in parameters for name in each.modules]
    parts = [part for name in names for part in (name, name.rpartition(".")[0], *name.split("."))]
    outermost = list(dict.fromkeys(name.split(".")[0] for name in names))
    plain = re.sub(r"[\\^$]", "", rule.match or "")
    return f"{did_you_mean(plain, filter(None, parts))} (names begin with: {shortened(outermost)})"


def _layers(parameters: Sequence[_Parameter], settings: "OptimizerSettings") -> tuple[list[int], int]:
    """Return the layer of each parameter and that of the head; without layer decay all are the head."""
    if settings.layer_decay is None:
        return [0] * len(parameters), 0
    numbers, head = layer_numbers([next(iter(each.modules.items())) for each in parameters], settings.layer_match)
    if head == 1:
        pattern, names = settings.layer_match, [name for each in parameters for name in each.modules]
        lacks = f"layer_match '{pattern}' is in no name" if pattern else _NO_BLOCKS
        message = (
            f"cfg.optimizer.layer_decay finds no layers: {lacks} (parameters are: {shortened(names)}). Say by "
            r"cfg.optimizer.layer_match what is a layer in their names, such as 'blocks\.\d+\.', or remove layer_decay"
        )
        raise ConfigError(message)
    return numbers, head
