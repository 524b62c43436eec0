"""The folder ``results`` of a test: who works in it, which test it is of, and what is left of one that was killed."""

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import FolderError, FolderInUseError, listed, shortened
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.core.locks import locked_folder
from vision3d_engine.results.journal import Journals
from vision3d_engine.results.names import FOLDER, TABLE, named
from vision3d_engine.results.sample_files import FORMATS

_OVERWRITTEN = ".overwritten"
Identity = Mapping[str, Any]
"""What a test must have in common with the attempts that it goes on with, as plain data by name."""


class ResultsFolder:
    """The folder of files and journals of a test.

    Args:
        output: the run folder.
        test: the name of the test; a run folder holds one without a name, and any number of others.
    """

    def __init__(self, output: Path, test: str = "") -> None:
        self.output, self.test = output, test
        self.path = output / named(FOLDER, test)
        self.progress = self.path / ".progress"
        self._record, self._kinds = self.progress / "test.json", self.progress / "kinds"

    def locked(self) -> AbstractContextManager[None]:
        """Keep other tests out while a block runs.

        Raises:
            FolderInUseError: naming the process that works there.
        """
        return locked_folder(make_folder(self.path))

    def open(self, identity: Identity, say: Callable[[str], object], *, resume: bool, overwrite: bool) -> None:
        """Make the folder ready for an attempt: one that goes on with the test there, or the first of a new test.

        Raises:
            FolderInUseError: when it holds files of another test that may not be replaced.
            FolderError: when the test there is not the one to go on with.
        """
        former = self._read_record()
        if resume and former is not None and self._is_the_same(former, identity):
            self._remove_leftovers()
            return
        if resume and former is None:
            say(f"'{self.path}' holds no test to go on with: this one starts anew")
        if former is not None and former["is_finished"] and not self.kinds():
            self._tell_replaced(former, identity, say)
        if self.kinds():
            self._put_aside(say, overwrite=overwrite)
        shutil.rmtree(self.progress, ignore_errors=True)
        self._kinds.mkdir(parents=True)
        self._write_record(identity, is_finished=False)

    def _is_the_same(self, former: dict[str, Any], identity: Identity) -> bool:
        """Tell whether a test can be gone on with; one that has ended without files may be followed by any other."""
        changed = _differences(former, identity)
        if changed and not (former["is_finished"] and not self.kinds()):
            lines = listed(changed.values())
            message = f"the test in '{self.path}' cannot be gone on with: {lines}. Results of both would be mixed: "
            raise FolderError(
                message + "set these as they were, start anew with --overwrite, or keep both with --test_name"
            )
        return not changed

    def _tell_replaced(self, former: dict[str, Any], identity: Identity, say: Callable[[str], object]) -> None:
        """Say that the tables of another test will be replaced; testing other weights is what a folder is for."""
        changed = _differences(former, identity)
        changed.pop("checkpoint", None)
        if changed:
            table = self.output / named(TABLE, self.test)
            say(f"this test will replace '{table}' of another ({listed(changed.values())}); --test_name keeps both")

    def _put_aside(self, say: Callable[[str], object], *, overwrite: bool) -> None:
        """Move files of an earlier test aside, until this one has ended; an older one that is there already stays."""
        if not overwrite:
            found = [f"{kind}: {sum(1 for _ in (self.path / kind).iterdir())} files" for kind in self.kinds()]
            message = f"'{self.path}' holds results of an earlier test ({shortened(found)}). Add --resume to go on "
            raise FolderInUseError(
                message + "with it, --overwrite to remove them and start anew, or --test_name NAME to keep both; in a "
                "script with several tests give each tester a test_name"
            )
        aside, kinds = self.path / _OVERWRITTEN, self.kinds()
        if aside.exists():
            for kind in kinds:
                shutil.rmtree(self.path / kind)
            return
        aside.mkdir()
        for name in (*kinds, self.progress.name):
            (self.path / name).rename(aside / name)
        say(f"--overwrite: old results stay in '{aside}' until this test has ended")

    def _remove_leftovers(self) -> None:
        """Remove files of batches that were not finished, which are done again."""
        known = Journals(self.progress).files()
        for kind in self.kinds():
            for path in (self.path / kind).iterdir():
                if path.suffix[1:] in {*FORMATS, "tmp"} and f"{kind}/{path.name}" not in known:
                    path.unlink()

    def finish(self) -> None:
        """Note that the test has ended, and remove what it has replaced."""
        record = self._read_record() or {"identity": {}}
        self._write_record(record["identity"], is_finished=True)
        shutil.rmtree(self.path / _OVERWRITTEN, ignore_errors=True)

    def kinds(self) -> list[str]:
        """Return the kinds of files that a test has left here."""
        names = sorted(path.name for path in self._kinds.iterdir()) if self._kinds.is_dir() else []
        return [name for name in names if (self.path / name).is_dir()]

    def open_kind(self, kind: str) -> Path:
        """Return the folder for files of a kind, which is made, and noted as one of ours before.

        Raises:
            FolderInUseError: when there is one of somebody else's.
        """
        folder, mark = self.path / kind, self._kinds / kind
        if folder.is_dir() and any(folder.iterdir()) and not mark.exists():
            message = f"'{folder}' holds files that no test of the engine has left: rename it, or save_result under "
            raise FolderInUseError(f"{message}another name than '{kind}'")
        make_folder(self._kinds)
        mark.touch()
        return make_folder(folder)

    def _read_record(self) -> dict[str, Any] | None:
        """Return which test the journals are of; None without one."""
        try:
            return json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None

    def _write_record(self, identity: Identity, *, is_finished: bool) -> None:
        with atomic_write(self._record) as file:
            file.write(json.dumps({"identity": identity, "is_finished": is_finished}, indent=2).encode())


def _differences(former: dict[str, Any], identity: Identity) -> dict[str, str]:
    """Return what a test has other than an earlier one, each with both values."""
    then, now = former["identity"], json.loads(json.dumps(identity))
    changed = [key for key in then | now if then.get(key) != now.get(key)]
    return {key: f"{key} was {then.get(key)!r}, is {now.get(key)!r}" for key in changed}
