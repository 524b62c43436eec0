"""The key-value store that has brought the processes together."""

import contextlib
from typing import Any

import torch.distributed as dist


def own_connection(name: str) -> Any:
    """Return the default group's store, with keys of one name, by a connection of its own if possible.

    Only then does a thread that talks to the store never hold the lock that a collective waits for.
    """
    store: Any = dist.distributed_c10d._get_default_store()  # noqa: SLF001  there is no public name for it
    with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):
        store = store.clone()
    return dist.distributed_c10d.PrefixStore(f"vision3d_engine/{name}", store)
