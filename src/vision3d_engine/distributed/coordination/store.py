"""The key-value store that has brought the processes together."""

import contextlib
from typing import Any

import torch.distributed as dist

_STORES: Any = dist  # they are public, though type checkers do not see it
_HERE = "127.0.0.1"


def own_connection(name: str) -> Any:
    """Return the default group's store, with keys of one name, by a connection of its own if possible.

    Only then does a thread that talks to the store never hold the lock that a collective waits for.
    """
    store: Any = dist.distributed_c10d._get_default_store()  # noqa: SLF001  there is no public name for it
    with contextlib.suppress(AttributeError, RuntimeError, NotImplementedError):
        store = store.clone()
    return dist.distributed_c10d.PrefixStore(f"vision3d_engine/{name}", store)


def lasting_connection(name: str, *, is_main: bool) -> Any:
    """Return a store that lives as long as the main process, for processes of one machine; all of them call it.

    That of a launcher dies with the launcher, and its processes could no longer agree to stop.
    """
    shared = own_connection(f"lasting/{name}")
    if not is_main:
        return _STORES.TCPStore(_HERE, int(shared.get("port")), is_master=False)
    store = _STORES.TCPStore(_HERE, 0, is_master=True, wait_for_workers=False)
    shared.set("port", str(store.port))
    return store
