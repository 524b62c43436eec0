"""Processes that each hold the whole model hold the same one: a checksum that travels with other numbers tells."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import torch

from vision3d_engine.core.errors import ReplicaError, shortened
from vision3d_engine.distributed.coordination.reductions import Sums, by_rank
from vision3d_engine.distributed.parallel.shards import is_sharded
from vision3d_engine.distributed.world import World

# Two parts of 20 bits: the sum of their squares over 8,000 processes is still exact in float64.
_BITS = 20
_PARTS = ("replica checksum, first part", "replica checksum, second part")
# Whole numbers that are mixed at a time: what the cache of a CPU holds; elsewhere, few large kernels of bounded memory.
_CPU_PIECE, _PIECE = 1 << 16, 1 << 22
_ODD = 0x9E3779B97F4A7C15 - (1 << 64)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CAUSES = (
    "Usual causes: a backward() and an optimizer of the script's own in train_step, before gradients are exchanged, or "
    "of a network that nobody exchanges; a weight that is changed on one process only, or by random numbers, which "
    "each process draws for itself. Put a second network into the registered model, add its loss to the one that "
    "train_step returns, and step its optimizer in optimizer_step; or exchange by hand (torch.distributed.broadcast of "
    "weights, all_reduce of gradients). For devices that compute differently, or weights that shall differ, set "
    "trainer.replica_check to 'warn' or 'off'"
)


class Trained(Protocol):
    """What is trained in a pass."""

    def groups(self) -> Sequence[int]:
        """Return numbers that change when what is trained does; asked at each log line."""
        ...

    def parameters(self) -> Mapping[str, torch.Tensor]:
        """Return it by name."""
        ...


class ReplicaCheck:
    """Compares what is trained on all processes, bit for bit; on one process, and where it is off, it does nothing.

    All processes get the same gradients and so keep the same bits, which makes an exact comparison sound. Of each
    process a checksum is added to numbers that are summed up over all anyway, with its square: the sums tell all
    processes alike whether all checksums are equal. Only when they are not, parameters are compared one by one.

    Args:
        world: the processes.
        mode: ``trainer.replica_check``.
        warn: says what was found where that is no error.
    """

    def __init__(self, world: World, mode: str, warn: Callable[[str], object]) -> None:
        self.is_on = world.size > 1 and mode != "off"
        self._world, self._is_error, self._warn = world, mode == "error", warn
        self._trained: Trained | None = None
        self._groups: Sequence[int] = ()
        self._parameters: dict[str, torch.Tensor] = {}
        self._last_equal = "never in this run"

    def watch(self, find: Callable[[], Trained]) -> None:
        """Watch what is trained in a pass, as far as it is not spread over the processes.

        Args:
            find: returns it; called if anything is compared.
        """
        if self.is_on:
            self._trained = find()
            self._collect(self._trained)

    def _collect(self, trained: Trained) -> None:
        self._groups = trained.groups()
        self._parameters = {name: each for name, each in trained.parameters().items() if _has_bits(each)}

    def probe(self, line: int) -> dict[str, torch.Tensor | None]:
        """Return the parts of the checksum, on the device, or None for each while it is not due; nothing is waited for.

        Args:
            line: number of the log line in its pass, from 1, of which 1, 2, 4, 8, ... are due, and each one after the
                parameter groups have changed; 0 at the end of an epoch, which is due.
        """
        if not self.is_on or self._trained is None:
            return {}
        if line & (line - 1) and self._trained.groups() == self._groups:
            return dict.fromkeys(_PARTS)
        self._collect(self._trained)  # what requires grad may have changed in the midst of the pass
        if not self._parameters:
            return dict.fromkeys(_PARTS)
        whole = checksum(self._parameters.values(), self._world.device)
        parts = (whole >> _BITS, whole >> 2 * _BITS)
        return {name: (part & ((1 << _BITS) - 1)).double() for name, part in zip(_PARTS, parts, strict=True)}

    def judge(self, sums: Sums, where: str) -> None:
        """Judge what became of `probe` over all processes.

        Args:
            sums: count, sum and sum of squares by name.
            where: the position in the run.

        Raises:
            ReplicaError: on all processes, when parameters differ; where that is no error, it is said once.
        """
        found = [sums[name] for name in _PARTS if name in sums]
        if not all(self._are_equal(*triple) for triple in found) and (message := self._difference(where)):
            if self._is_error:
                raise ReplicaError(message)
            self.is_on = False
            self._warn(f"{message}. This is not looked at again")
        elif found:
            self._last_equal = where

    def _are_equal(self, count: float, total: float, squares: float) -> bool:
        """Tell whether all processes have sent one number: the one case in which n times the squares is the square."""
        return int(count) == self._world.size and self._world.size * int(squares) == int(total) ** 2

    def _difference(self, where: str) -> str:
        """Return which parameters differ; empty when one process has looked where others have not."""
        own = {name: _fingerprint(parameter) for name, parameter in self._parameters.items()}
        found = self._world.gather(own)
        names = dict.fromkeys(name for each in found for name in each)
        differing = [name for name in names if len({each.get(name) for each in found}) > 1]
        if not differing:
            return ""
        first = differing[0]
        values = [each.get(first, "not trained") for each in found]
        return (
            f"the processes do not train the same weights: at {where}, '{first}' differs ({by_rank(values)}). Of "
            f"{len(names)} parameters {len(differing)} do: {shortened(differing, 4)}. Last found equal: "
            f"{self._last_equal}. {_CAUSES}"
        )


def checksum(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """Return a whole number of 64 bits, on the device, in which every bit of the tensors and its place counts.

    Nothing waits for the device. Parts of tensors that are spread over processes are left out.
    """
    numbers = [_mixed(piece) for each in tensors if _has_bits(each) for piece in _pieces_of(each)]
    sums = [number.to(device) for number in numbers]
    return _mixed(torch.stack(sums)) if sums else torch.zeros((), dtype=torch.int64, device=device)


def _has_bits(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and not is_sharded(tensor) and tensor.numel() > 0


def _pieces_of(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Return the bits of a tensor as whole numbers, of 64 bits where that comes out even, wherever the tensor lies."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    width = flat.element_size() if flat.nbytes % 8 else 8
    if flat.storage_offset() * flat.element_size() % width:
        flat = flat.clone()
    return flat.view(_INTEGERS[width]).split(_CPU_PIECE if flat.device.type == "cpu" else _PIECE)


def _mixed(bits: torch.Tensor) -> torch.Tensor:
    """Return how many whole numbers there are, plus each multiplied by one of its place and folded, modulo 2^64."""
    places = torch.arange(1, 2 * len(bits), 2, dtype=torch.int64, device=bits.device).mul_(_ODD)
    product = places.mul_(bits)
    return product.bitwise_xor_(product >> 32).sum() + len(bits)


def _fingerprint(parameter: torch.Tensor) -> str:
    """Return shape, norm and checksum of a parameter, for people; equal for equal ones alone."""
    norm = float(parameter.detach().to(torch.complex128 if parameter.is_complex() else torch.float64).norm())
    bits = int(checksum([parameter], parameter.device)) & ((1 << 64) - 1)
    return f"{tuple(parameter.shape)}, {parameter.dtype}, norm {norm:.9g}, checksum {bits:016x}"
