"""Stubs for what the files of others name beside their weights, so that reading them runs nothing of it."""

import pickle
import pickletools
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, ClassVar

import torch

from vision3d_engine.core.errors import CheckpointError, DamagedCheckpointError

# A file in torch's format from before 1.6 is a row of pickles: a magic number, a version, the machine, then the data.
_OLD_FORMAT = 4
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}


class Stub:
    """Stands for a class or function that is not looked up; it takes what a pickle does to it, and keeps none of it.

    Attributes:
        name: full name of what it stands for.
        plain: the type that stands for its objects where these are filled with items, which are data; else None.
    """

    name: ClassVar[str] = ""
    plain: ClassVar[type | None] = None

    def __new__(cls, *_: Any) -> Any:
        """Return an empty stub, or what holds the items to come."""
        return super().__new__(cls) if cls.plain is None else cls.plain()

    def __setstate__(self, _: Any) -> None:
        """Leave it empty."""

    def __setitem__(self, *_: Any) -> None:
        type(self).plain = OrderedDict

    def append(self, _: Any) -> None:
        """Note that it is filled like a list."""
        type(self).plain = list

    extend = append

    def __repr__(self) -> str:
        return f"<{self.name}, not loaded>"


class _Survey(pickle.Unpickler):
    """Walks through a pickle with stubs in place of all that it names, so that they learn what is done to them."""

    def __init__(self, file: IO[bytes], stubs: dict[str, type[Stub]]) -> None:
        super().__init__(file, encoding="bytes")
        self._stubs = stubs

    def find_class(self, module_name: str, global_name: str, /) -> type[Stub]:
        """Return the stub of a name; torch will look for it under this name, or under the one of today's python."""
        module = IMPORT_MAPPING.get(module_name, module_name)
        name = ".".join(NAME_MAPPING.get((module_name, global_name), (module, global_name)))
        stub = self._stubs.setdefault(name, type(name, (Stub,), {"name": name}))
        return self._stubs.setdefault(f"{module_name}.{global_name}", stub)

    def persistent_load(self, _: Any) -> None:
        """Pass over the numbers of a tensor."""


def stubs_for(path: Path) -> list[tuple[type[Stub], str]]:
    """Return a stub for all that a file names, as `torch.serialization.safe_globals` takes them.

    What torch allows by itself, or the script has allowed (`torch.serialization.add_safe_globals`), is not stubbed.
    """
    stubs: dict[str, type[Stub]] = {}
    try:
        for file, count in _pickles_of(path):
            for _ in range(count):
                _check_memo(file, path)
                _Survey(file, stubs).load()
    except CheckpointError:
        raise
    except Exception:  # noqa: BLE001, S110  whatever else is wrong with the file is told when torch loads it
        pass
    allowed = {
        each[1] if isinstance(each, tuple) else _full_name(each) for each in torch.serialization.get_safe_globals()
    }
    return [(stub, name) for name, stub in stubs.items() if name not in allowed]


def _check_memo(file: IO[bytes], path: Path) -> None:
    """Refuse a pickle that numbers its entries higher than it has bytes, for which the survey would take any memory.

    Raises:
        DamagedCheckpointError: naming the file.
    """
    start = file.tell()
    for opcode, number, place in pickletools.genops(file):
        if opcode.name in _PUTS and int(number or 0) > (place or 0) - start:
            message = f"'{path}' is damaged or not made by pickle: after {place} bytes it numbers an entry {number}"
            raise DamagedCheckpointError(f"{message}, more than it can hold; use another file")
    file.seek(start)


def _pickles_of(path: Path) -> Iterator[tuple[IO[bytes], int]]:
    """Yield what holds the pickles of a file, and how many they are."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file, _OLD_FORMAT
        return
    with zipfile.ZipFile(path) as records:
        for record in records.namelist():
            if record.endswith("/data.pkl"):
                with records.open(record) as file:
                    yield file, 1


def _full_name(named: Any) -> str:
    return f"{named.__module__}.{named.__qualname__}"


def is_stub(value: Any) -> bool:
    """Return whether a value stands for what was not loaded: an object, or a class or function itself."""
    return isinstance(value, Stub) or (isinstance(value, type) and issubclass(value, Stub))


def kind_of(value: Any) -> str:
    """Return what a value of a file is, or was before a stub stood for it, for use in a message."""
    if is_stub(value):
        return f"a python object ({value.name}), which is not loaded since that would run code"
    return f"a {type(value).__name__}"
