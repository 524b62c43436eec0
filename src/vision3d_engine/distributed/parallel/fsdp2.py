"""FSDP2: every process holds a part of each parameter, its gradient and its optimizer state."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from vision3d_engine.core.errors import ConfigError, RegistrationError, did_you_mean, listed, shortened
from vision3d_engine.distributed.parallel.base import Parallel
from vision3d_engine.distributed.parallel.shard_store import ShardStore
from vision3d_engine.distributed.parallel.shards import is_sharded, local_part
from vision3d_engine.distributed.parallel.wrapping import (
    Step,
    StepHolder,
    broadcast,
    outside_parameters,
    running_in,
    unwrap_model,
    with_alias,
    with_synced_norms,
)
from vision3d_engine.distributed.world import World

_DTYPES = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class FullyShardedParallel(Parallel):
    """Parameters are gathered block by block where they are needed (``torch.distributed.fsdp.fully_shard``).

    A training step runs as the forward pass of a module around the model, and what belongs to no block is gathered
    before it, so that a step may also call the model's methods and submodules. Every process must call the blocks
    equally often in a step, since each call gathers parameters.

    Args:
        world: the processes.
        trainer: the settings ``trainer.*``.
    """

    joins_with_zeros = False

    def __init__(self, world: World, trainer: Any) -> None:
        super().__init__(world)
        self._trainer = trainer
        self._holders: dict[nn.Module, Any] = {}
        self._takes_turns = False

    def wrap(self, model: nn.Module) -> nn.Module:
        """Shard the model in place, block by block, so that the device never holds all of it; the main one's counts."""
        model = with_synced_norms(model, self.world, self._trainer)
        own = unwrap_model(model)
        _refuse_scalars(own)
        mesh = init_device_mesh(self.world.device.type, (self.world.size,))
        blocks = blocks_of(own, self._trainer.fsdp_blocks, self._trainer.fsdp_min_params)
        for block in dict.fromkeys((*self._exact_norms(own), *blocks)):
            self._broadcast_from_main(block)
            fully_shard(block, mesh=mesh, mp_policy=self._policy(block), reshard_after_forward=True)
        self._broadcast_from_main(own)
        fully_shard(own, mesh=mesh, mp_policy=self._policy(own, is_root=True), reshard_after_forward=False)
        self._holders[own] = _started(StepHolder(own), mesh)
        self.store = ShardStore(mesh)
        return with_alias(model)

    def exchanging(self, step: Step, model: nn.Module, optimizer: Any, in_parts: bool = False) -> Step:
        """Return a step whose loss exchanges gradients; see `Parallel.exchanging`.

        Raises:
            RegistrationError: when the optimizer trains parameters outside the model, which belong to no shard.
        """
        self.release(model)  # a hook may have called the model, which leaves it gathered
        if outside := list(outside_parameters(model, optimizer)):
            message = f"trainer.parallel 'fsdp2' cannot train {shortened(outside)}, outside the model. Put "
            raise RegistrationError(
                message + "them into the model, as a nn.Parameter of it, or use trainer.parallel: ddp"
            )
        self._takes_turns, inside = in_parts, step
        models: list[Any] = self._sharded(model)
        for own in models:
            inside = running_in(self._holders[own], inside)

        def exchanging(*args: Any) -> tuple[Any, ...]:
            for own in models:
                own.unshard()
            return inside(*args)

        return exchanging

    def _sharded(self, model: nn.Module) -> list[Any]:
        """Return the modules that were wrapped: the model itself, or several in it."""
        return [module for module in unwrap_model(model).modules() if module in self._holders]

    @contextlib.contextmanager
    def walked_back_to(
        self, parameters: Sequence[torch.Tensor], others: Iterable[torch.Tensor]
    ) -> Iterator[Sequence[torch.Tensor] | None]:
        """Return a context in which a backward pass gives gradients to some parameters alone; others get theirs back.

        The leaves of the graph are gathered parameters, which torch cannot be told as ``inputs``.
        """
        kept = [(parameter, parameter.grad) for parameter in others]
        for parameter, _ in kept:
            parameter.grad = None
        try:
            yield None
        finally:
            for parameter, gradient in kept:
                parameter.grad = gradient

    def _exact_norms(self, model: nn.Module) -> list[nn.Module]:
        """Return the batch norms that must keep their precision while the rest computes in 16 bits."""
        inner = list(model.modules())[1:] if self._trainer.fsdp_param_dtype != "none" else []
        return [module for module in inner if isinstance(module, _BatchNorm) and module.affine]

    def _policy(self, block: nn.Module, is_root: bool = False) -> MixedPrecisionPolicy:
        """Return the types of a block: batch norms keep theirs, the outermost module hands out float32."""
        param_dtype = _DTYPES[self._trainer.fsdp_param_dtype]
        if isinstance(block, _BatchNorm) or param_dtype is None:
            return MixedPrecisionPolicy(reduce_dtype=_DTYPES[self._trainer.fsdp_reduce_dtype])
        output_dtype = torch.float32 if is_root else None
        return MixedPrecisionPolicy(param_dtype, _DTYPES[self._trainer.fsdp_reduce_dtype], output_dtype)

    def _broadcast_from_main(self, block: nn.Module) -> None:
        """Move what is not sharded yet to the device, and overwrite it with that of the main process."""
        block.to(self.world.device)
        tensors = (*block.parameters(), *block.buffers())
        broadcast((tensor for tensor in tensors if not is_sharded(tensor)), self.world)

    @contextlib.contextmanager
    def without_gradient_sync(self) -> Iterator[None]:
        """Return a context in which a backward pass keeps whole gradients instead of exchanging them.

        It exchanges them where networks take turns, since a pass may have to be kept from some of them.
        """
        self._set_sync(self._takes_turns)
        try:
            yield
        finally:
            self._set_sync(True)

    def _set_sync(self, is_on: bool) -> None:
        for holder in self._holders.values():
            holder.set_requires_gradient_sync(is_on)

    @contextlib.contextmanager
    def local_forward(self, model: nn.Module, batches: int | None) -> Iterator[None]:
        """Take the main one's buffers; hold the whole model meanwhile when the processes' shares are unequal.

        Parameters are given back at the end, which a backward pass does otherwise.
        """
        own, outermost = unwrap_model(model), self._sharded(model)
        broadcast(own.buffers(), self.world)
        counts = set(self.world.gather(batches))
        blocks = [module for module in own.modules() if isinstance(module, FSDPModule)]
        for block in blocks if len(counts) > 1 or None in counts else ():
            block.set_reshard_after_forward(False, recurse=False)
            block.unshard()
        try:
            yield
        finally:
            for block in blocks:
                block.set_reshard_after_forward(block not in outermost, recurse=False)
            self.release(own)

    def release(self, model: nn.Module) -> None:
        """Let every process hold its parts alone, such as before and after they are changed in place."""
        for block in unwrap_model(model).modules():
            if isinstance(block, FSDPModule):
                block.reshard()

    def local_parts(self, tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
        """Return the shard of each tensor, sharing its memory."""
        return [local_part(tensor) for tensor in tensors]

    def from_main(self, value: Any) -> Any:
        """Return the main process's value; one gather."""
        return self.world.gather(value)[0]


def _started(holder: Any, mesh: Any) -> Any:
    """Return a module around the whole model, once it is the outermost one for torch: the first that is called."""
    fully_shard(holder, mesh=mesh)
    holder(lambda: None)
    return holder


def blocks_of(model: nn.Module, names: Sequence[str], min_params: int) -> list[nn.Module]:
    """Return the modules that are gathered one at a time, inner ones first; the model itself is not among them.

    Args:
        model: the user's module.
        names: classes of the blocks; if there are none, blocks are found by their size.
        min_params: how many parameters an entry of a ``Sequential``, ``ModuleList`` or ``ModuleDict`` must have to be
            a block, without those of blocks inside it.

    Raises:
        ConfigError: when the model has no module of a named class.
    """
    inner = list(model.modules())[1:]
    known = sorted({type(module).__name__ for module in inner})
    for name in names:
        if name not in known:
            message = f"trainer.fsdp_blocks names '{name}', which is no module of the model{did_you_mean(name, known)}"
            raise ConfigError(f"{message} (it has: {listed(known)})")
    if names:
        return [module for module in reversed(inner) if type(module).__name__ in names]
    return _large_entries(model, min_params)


def _large_entries(model: nn.Module, min_params: int) -> list[nn.Module]:
    """Return the large entries of containers, inner ones first; their forward pass is called as a whole."""
    entries = {child for parent in model.modules() if isinstance(parent, _CONTAINERS) for child in parent.children()}
    blocks: list[nn.Module] = []
    taken: set[nn.Parameter] = set()
    for module in reversed(list(model.modules())[1:]):
        fresh = [parameter for parameter in module.parameters() if parameter not in taken]
        has_forward = not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if module in entries and has_forward and sum(parameter.numel() for parameter in fresh) >= min_params:
            blocks.append(module)
            taken.update(fresh)
    return blocks


def _refuse_scalars(model: nn.Module) -> None:
    if scalars := [name for name, parameter in model.named_parameters() if parameter.dim() == 0]:
        message = f"trainer.parallel 'fsdp2' cannot spread parameters without a dimension: {listed(scalars)}. "
        raise RegistrationError(message + "Give them one: nn.Parameter(torch.zeros(1))")
