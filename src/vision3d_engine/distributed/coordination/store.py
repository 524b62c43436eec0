"""The key-value store that has brought the processes together."""

import atexit
import contextlib
import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import torch.distributed as dist

_STORES: Any = dist  # they are public, though type checkers do not see it
_HERE = "127.0.0.1"
_LAST_WORD_S = 10.0  # a store that does not answer for so long holds no process that wants to end
_TALKING: WeakSet[threading.Thread] = WeakSet()


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


def talking_thread(talk: Callable[[], None], name: str) -> threading.Thread:
    """Return a thread that talks to a store, to be started; the process waits for it before the interpreter goes.

    One that came back from a call of torch's afterwards would abort the process.

    Args:
        talk: what it does; it is told otherwise when to end.
        name: of the thread.
    """
    thread = threading.Thread(target=talk, name=name, daemon=True)
    _TALKING.add(thread)
    return thread


@atexit.register
def _end_talks() -> None:
    for thread in list(_TALKING):
        if thread.is_alive():
            thread.join(_LAST_WORD_S)
