"""Which parameters have grown out of all proportion before a step, and which of them first."""

from collections.abc import Iterable

import torch
from torch.nn.parameter import is_lazy

from vision3d_engine.distributed.parallel.shards import local_part

# A norm that has grown so many times is no longer that of learning.
_TIMES = 10
# Of a parameter that starts at zero, such as a bias, numbers of this size are taken for its start.
_LEAST = 0.1


class Growth:
    """Watches the norms of parameters from step to step; the device is waited for by `text` alone.

    Args:
        named: the parameters by name, as they are where the replay starts.
    """

    def __init__(self, named: Iterable[tuple[str, torch.Tensor]]) -> None:
        self._named = {name: each for name, each in named if not is_lazy(each) and each.is_floating_point()}
        self._before = self._norms()
        least = [_LEAST * each.numel() ** 0.5 for each in self._named.values()]
        self._limits = _TIMES * self._before.maximum(self._before.new_tensor(least))
        self._grown_at = torch.zeros_like(self._before)

    def look(self, step: int) -> None:
        """Note which ones have grown too far behind a step."""
        is_new = (self._norms() > self._limits) & (self._grown_at == 0)
        self._grown_at.masked_fill_(is_new, step)

    def text(self) -> str:
        """Say which parameter has grown first; empty if none has."""
        norms = zip(self._named, self._before.tolist(), self._norms().tolist(), strict=True)
        found = [(step, *norm) for step, norm in zip(self._grown_at.tolist(), norms, strict=True) if step]
        if not found:
            return ""
        step, name, before, now = min(found, key=lambda each: each[0])
        others = f", then {len(found) - 1} more" if len(found) > 1 else ""
        return (
            f"exploding: the norm of {name} grew first: {before:.4g} where the replay starts, more than {_TIMES} times "
            f"that behind step {step:.0f}, {now:.4g} before this step{others}. Usually: the learning rate is too high; "
            "lower it, warm it up, or clip the gradients"
        )

    @torch.no_grad()
    def _norms(self) -> torch.Tensor:
        norms = [torch.linalg.vector_norm(local_part(each).float()) for each in self._named.values()]
        return torch.stack([norm.to(norms[0].device) for norm in norms]).double() if norms else torch.zeros(0).double()
