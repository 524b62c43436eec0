"""Put loaded weights into models, or say exactly why they do not fit."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from vision3d_engine.checkpoint.files import find_checkpoint, load_dict
from vision3d_engine.checkpoint.shard_folders import is_sharded_state, with_tensors
from vision3d_engine.checkpoint.stubs import stubs_for
from vision3d_engine.checkpoint.weights import loadable_of, nest_of, renaming_hint, under_names
from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError, listed, shortened
from vision3d_engine.distributed.parallel.shards import like
from vision3d_engine.distributed.parallel.wrapping import clean_key, unwrap_model

# What DistributedDataParallel and torch.compile put into the names of a state.
_WRAPPERS = ("module", "_orig_mod")
Patterns = str | Sequence[str]


def model_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a model's state under the names of the user's own module, whatever wraps it or its children."""
    return {_own_name(key): value for key, value in unwrap_model(model).state_dict().items()}


def parameter_names(model: nn.Module) -> set[str]:
    """Return the names of a model's parameters, as they are in `model_state`."""
    return {_own_name(name) for name, _ in unwrap_model(model).named_parameters()}


def _own_name(key: str) -> str:
    """Return a parameter's name without the ``_orig_mod`` that ``torch.compile`` puts into it."""
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def load_model(model: nn.Module, state: Mapping[str, Any], source: str, strict: bool = True) -> list[str]:
    """Load a model's weights and return what did not fit; prefixes of wrappers that the model lacks are ignored.

    A model that takes it by means of its own (``load_state_dict``, hooks, lazy modules, extra state) is let do so.

    Raises:
        CheckpointError: when strict and torch refuses it, with missing and unexpected keys and differing shapes in one
            report; then the model is as it was.
    """
    own = unwrap_model(model)
    found, names = _stripped(state, own, source), {_own_name(key): key for key in own.state_dict()}
    wanted = model_state(own)
    report = _misfits(found, wanted)
    if report and strict:
        message = f"part 'model' of '{source}' does not fit: " + "; ".join(report)
        if any(_loses_numbers(value, wanted.get(key)) for key, value in found.items()):
            raise CheckpointError(message)  # torch would only warn
        values = {names.get(key, key): like(value, wanted.get(key)) for key, value in found.items()}
        _load_as_torch_can(own, values, message)
        return []
    fitting = {key: value for key, value in found.items() if key in wanted and _fits(value, wanted[key])}
    _load_fitting(own, {names[key]: like(value, wanted[key]) for key, value in fitting.items()}, bool(report), source)
    return report


def _load_fitting(model: nn.Module, values: Mapping[str, Any], is_partial: bool, source: str) -> None:
    """Load what fits by name and shape; no copy is made for what the model's own code, or torch, may still refuse.

    Raises:
        CheckpointError: with the cause.
    """
    try:
        model.load_state_dict(values, **({"strict": False} if is_partial else {}))
    except Exception as error:
        message = f"part 'model' of '{source}' fits by names and shapes, but loading it failed: {error}. The model may "
        raise CheckpointError(message + "be loaded in part: build it anew before it is used") from error


def _load_as_torch_can(model: nn.Module, values: Mapping[str, Any], report: str) -> None:
    """Let torch load what does not fit name by name; it copies before it refuses, which is undone."""
    before = {key: _kept(value) for key, value in model.state_dict().items()}
    try:
        model.load_state_dict(values)
    except Exception as error:
        try:
            model.load_state_dict(before)
        except Exception:  # noqa: BLE001  the model's own code; the first error counts
            report += ". The model may be loaded in part"
        raise CheckpointError(report) from error


def _kept(value: Any) -> Any:
    is_plain = isinstance(value, torch.Tensor) and not is_lazy(value)
    return value.detach().clone() if is_plain else value


class WeightNames(TypedDict, total=False):
    """Which of a file's weights are taken, and under which names.

    Attributes:
        include: pattern or patterns (``"encoder.*"``, as of a shell) of the file's names to take; empty takes all.
        exclude: those to leave out.
        rename: beginnings of names in the file and what they are in the model (``{"backbone.": "encoder."}``), applied
            after include and exclude.
    """

    include: Patterns
    exclude: Patterns
    rename: Mapping[str, str] | None


def load_weights(
    model: nn.Module,
    name: str | Path,
    folder: Path,
    *,
    strict: bool = True,
    key: str | None = None,
    **names: Unpack[WeightNames],
) -> tuple[Path, dict[str, Any], list[str]]:
    """Load the weights of a file, whatever `nest_of` finds; return its path, metadata and what did not fit.

    Args:
        model: what to load into.
        name: an absolute path, one from where the command runs, or a name in the folder.
        folder: the checkpoint folder.
        strict: refuse when a weight is missing, unexpected or of another shape.
        key: where the weights are in a file that holds several nests of tensors (``"ema.state_dict"``).
        names: which weights to take, and their names in the model.

    Raises:
        CheckpointError: when there is no such file, it cannot be read, its weights are not found, it does not fit, or
            nothing of it does.
    """
    path = find_checkpoint(name, folder)
    state = read_weights_file(path)
    found, wanted = _stripped(nest_of(state, str(path), key), model, str(path)), model_state(model)
    weights = _chosen(found, str(path), **names)
    if not weights.keys() & wanted.keys():
        message = f"nothing in '{path}' fits the model: the file has {shortened(list(found))}; the model has "
        raise CheckpointError("; ".join([message + shortened(list(wanted)), *_hint(weights, wanted)]))
    report, metadata = load_model(model, weights, str(path), strict), state.get("metadata")
    return path, dict(metadata) if isinstance(metadata, Mapping) else {}, report


def _chosen(
    found: Mapping[str, Any],
    source: str,
    *,
    include: Patterns = (),
    exclude: Patterns = (),
    rename: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return what to take, under its names in the model.

    Raises:
        CheckpointError: for a pattern or a beginning that no name has.
    """
    _refuse_idle(found, source, include=_as_list(include), exclude=_as_list(exclude))
    idle = [start for start in rename or {} if start and not any(name.startswith(start) for name in found)]
    if idle:
        message = f"rename: no name in '{source}' begins with {listed(idle)} (it has {shortened(list(found))})"
        raise CheckpointError(message)
    names = [name for name in found if (not include or _matches(name, include)) and not _matches(name, exclude)]
    weights = loadable_of({name: found[name] for name in names}, source)
    return under_names(weights, lambda name: _renamed(name, rename or {}), source)


def _refuse_idle(found: Mapping[str, Any], source: str, **patterns: Sequence[str]) -> None:
    """Refuse patterns that select nothing, such as a beginning without its ``*``.

    Raises:
        CheckpointError: naming the pattern.
    """
    for option, several in patterns.items():
        for pattern in several:
            if not any(fnmatchcase(name, pattern) for name in found):
                message = f"{option}='{pattern}' matches no name in '{source}' (it has {shortened(list(found))}). "
                message += f"Patterns are of whole names, as of files in a shell: '{pattern.rstrip('.*')}.*'"
                raise CheckpointError(message)


def _as_list(patterns: Patterns) -> Sequence[str]:
    return (patterns,) if isinstance(patterns, str) else patterns


def read_weights_file(path: Path) -> dict[str, Any]:
    """Read a file of any code for its weights; a safetensors file is a bare state dict.

    Objects of python classes in it are not made, and nothing is run: `Stub`s stand for them.
    """
    if path.suffix != ".safetensors":
        state = load_dict(path, stubs_for(path))
        return with_tensors(state, path, None, only=("model",)) if is_sharded_state(state) else state
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        message = f"'{path}' cannot be read: {error}. It is damaged or not a safetensors file; use another one"
        raise DamagedCheckpointError(message) from error


def _stripped(weights: Mapping[str, Any], model: nn.Module, source: str) -> dict[str, Any]:
    """Return weights without the prefixes that wrappers put in front of all of them, unless the model has these."""
    own = model_state(model).keys()
    plain = under_names(weights, _own_name, source)
    return plain if plain.keys() & own else under_names(plain, clean_key, source)


def with_names_of(own: Any, state: Any) -> Any:
    """Return a saved state under the names that its owner has now, whatever has wrapped modules then or wraps them now.

    Names that differ by ``module`` and ``_orig_mod`` alone are the same one, in nests too; where that is ambiguous, and
    where nothing differs, the state is returned as it is.

    Args:
        own: the state that the owner hands out now.
        state: the saved one.
    """
    if not (isinstance(own, Mapping) and isinstance(state, Mapping)):
        return state
    now, then = ({_bare(key): key for key in names} for names in (own, state))
    if len(now) < len(own) or len(then) < len(state):
        return state
    named = {now.get(bare, key): with_names_of(own.get(now.get(bare)), state[key]) for bare, key in then.items()}
    return state if all(named.get(key) is value for key, value in state.items()) else named


def _bare(key: Any) -> Any:
    """Return a name without what wrappers put into it."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS) if isinstance(key, str) else key


def _matches(name: str, patterns: Patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in _as_list(patterns))


def _renamed(name: str, rename: Mapping[str, str]) -> str:
    """Replace the beginning of a name; the longest one that fits counts."""
    old = max((old for old in rename if name.startswith(old)), key=len, default="")
    return rename.get(old, "") + name[len(old) :]


def _misfits(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one line each for missing keys, unexpected keys, differing shapes and types that lose numbers."""
    missing = [f"'{key}' {_shape(value)}" for key, value in wanted.items() if key not in found]
    unexpected = [f"'{key}' {_shape(value)}" for key, value in found.items() if key not in wanted]
    common = [key for key in wanted if key in found and _shape(found[key]) != _shape(wanted[key])]
    differing = [f"'{key}' is {_shape(found[key])}, the model has {_shape(wanted[key])}" for key in common]
    lossy = [
        f"'{key}' is {found[key].dtype}, the model has {wanted[key].dtype}"
        for key in wanted
        if key not in common and _loses_numbers(found.get(key), wanted[key])
    ]
    kinds = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("shape differs:", differing),
        ("type differs:", lossy),
    )
    return [f"{kind} {shortened(lines)}" for kind, lines in kinds if lines] + _hint(found, wanted)


def _hint(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    unexpected = {name: _shape(value) for name, value in found.items() if name not in wanted}
    return renaming_hint(unexpected, {name: _shape(value) for name, value in wanted.items() if name not in found})


def _fits(value: Any, target: Any) -> bool:
    return _shape(value) == _shape(target) and not _loses_numbers(value, target)


def _loses_numbers(value: Any, target: Any) -> bool:
    """Tell whether a value is complex and its target real."""
    both = isinstance(value, torch.Tensor) and isinstance(target, torch.Tensor)
    return both and value.is_complex() and not target.is_complex()


def _shape(value: Any) -> str:
    if is_lazy(value):
        return "not known before the first batch"
    return str(tuple(value.shape)) if isinstance(value, torch.Tensor) else type(value).__name__
