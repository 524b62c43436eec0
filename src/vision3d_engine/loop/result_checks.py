"""Checks of what user steps return; each key is looked at when it first comes, so that later steps cost nothing."""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from vision3d_engine.core.errors import DataError, ResultError, SkipBatch, did_you_mean, listed
from vision3d_engine.core.tree import describe

_RETURN_LOSS = "Return {'loss': tensor, ...}"


def check_batch(data_dict: Any, loader: str) -> None:
    """Refuse a batch that is neither a dict nor None, which is left out."""
    if data_dict is not None and not isinstance(data_dict, Mapping):
        message = (
            f"the {loader} yielded {describe(data_dict)}; batches must be dicts such as "
            "{'points': ..., 'label': ...}. Return a dict from the data set's __getitem__ or from collate_fn, or None "
            "from collate_fn to leave a batch out"
        )
        raise DataError(message)


class ResultChecker:
    """Checks the dicts that the steps of one kind return.

    Args:
        step_name: name of the user's method, for messages.
    """

    def __init__(self, step_name: str) -> None:
        self._step_name = step_name
        self._seen: set[str] = set()

    def unpack(self, returned: Any) -> tuple[Any, dict[str, Any]]:
        """Return the output dict and the result dict of a step that must return these two.

        Raises:
            SkipBatch: when it has returned None.
            ResultError: when it has returned anything else.
        """
        if type(returned) is tuple and len(returned) == 2 and type(returned[1]) is dict:  # noqa: PLR2004  the usual case
            return returned  # pyright: ignore[reportReturnType]
        pair = self.present(returned)
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[1], Mapping)):  # noqa: PLR2004
            message = (
                f"{self._step_name} returned {describe(returned)}; it must return two dicts: output_dict, result_dict"
            )
            raise ResultError(message)
        return returned[0], returned[1]  # pyright: ignore[reportReturnType]

    def present(self, returned: Any) -> Any:
        """Return what a step has returned.

        Raises:
            SkipBatch: when that is None.
        """
        if returned is None:
            raise SkipBatch(f"{self._step_name} returned None")
        return returned

    def loss(self, result_dict: Mapping[str, Any]) -> torch.Tensor:
        """Return the loss: one number that requires grad."""
        loss = result_dict.get("loss")
        if not isinstance(loss, torch.Tensor) or not loss.requires_grad or loss.numel() != 1:
            raise ResultError(self._wrong_loss(result_dict))
        return loss

    def _wrong_loss(self, result_dict: Mapping[str, Any]) -> str:
        if "loss" not in result_dict:
            hint = did_you_mean("loss", result_dict)
            keys = listed(result_dict)
            return f"{self._step_name} returned a result dict without 'loss' (its keys: {keys}){hint}. {_RETURN_LOSS}"
        loss = result_dict["loss"]
        if isinstance(loss, torch.Tensor) and loss.numel() != 1:
            return f"'loss' of {self._step_name} is {describe(loss)}; it must be one number: use loss.mean()"
        return (
            f"'loss' of {self._step_name} is {describe(loss)} and does not require grad, so it teaches nothing. "
            "Compute it from the model's output without .item(), .detach(), .numpy() or torch.no_grad(), and check "
            "that some parameter is not frozen"
        )

    def check(self, result_dict: Any) -> None:
        """Check that every value is one number; only keys that are new are looked at."""
        if not (isinstance(result_dict, Mapping) and result_dict.keys() <= self._seen):
            self._check_new(result_dict)

    def _check_new(self, result_dict: Any) -> None:
        if not isinstance(result_dict, Mapping):
            message = f"{self._step_name} returned {describe(result_dict)}; it must return a dict of numbers"
            raise ResultError(message)
        for key, value in result_dict.items():
            if key not in self._seen:
                self._check_value(key, value)
                self._seen.add(key)

    def _check_value(self, key: str, value: Any) -> None:
        if is_number(value):
            return
        fix = f"log a single number such as result_dict['{key}'].mean(), and put the rest into the output dict"
        message = f"'{key}' of {self._step_name} is {describe(value)}; result dicts hold one number a key: {fix}"
        raise ResultError(message)


def is_number(value: Any) -> bool:
    """Tell whether a value is one number: python or numpy number, or tensor or array of one element."""
    if isinstance(value, torch.Tensor | np.ndarray):
        size = value.numel() if isinstance(value, torch.Tensor) else value.size
        return size == 1 and not _is_complex(value)
    return isinstance(value, numbers.Real | np.bool_)


def _is_complex(value: Any) -> bool:
    return value.is_complex() if isinstance(value, torch.Tensor) else np.iscomplexobj(value)


def as_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Return those values of a summary that are single numbers, as floats."""
    return {key: float(value) for key, value in values.items() if is_number(value)}
