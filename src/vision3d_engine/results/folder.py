"""The folder ``results`` of a test: who works in it, which test it is of, and what is left of one that was killed."""

import json
import shutil
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from vision3d_engine.core.errors import FolderError, FolderInUseError, listed, shortened
from vision3d_engine.core.files import atomic_write, make_folder
from vision3d_engine.core.locks import locked_folder
from vision3d_engine.results.journal import Journals
from vision3d_engine.results.names import FOLDER, TABLE, named
from vision3d_engine.results.sample_files import FORMATS

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
        self._aside = self.path / ".overwritten"
        self._moved = self._aside / self.progress.name

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
            FolderError: when the test there is not the one to go on with, or files of it are lost.
        """
        self._end_moving_aside()
        former = self._read_record()
        if former is not None and former["is_finished"]:
            self._remove_replaced()
        if resume and former is not None and self._is_the_same(former, identity):
            self._go_on(former, say)
            return
        if resume and former is None:
            say(f"'{self.path}' holds no test to go on with: this one starts anew")
        self._start_anew(former, identity, say, overwrite=overwrite)

    def _start_anew(
        self, former: dict[str, Any] | None, identity: Identity, say: Callable[[str], object], *, overwrite: bool
    ) -> None:
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
        if self._moved.exists():
            for kind in self.kinds():
                shutil.rmtree(self.path / kind)
            return
        self._aside.mkdir(exist_ok=True)
        self.progress.rename(self._moved)  # first: it knows what else belongs aside
        self._end_moving_aside()
        say(f"--overwrite: old results stay in '{self._aside}' until this test has ended")

    def _end_moving_aside(self) -> None:
        """Move the rest of an earlier test aside, where its journals are already and no other test has begun."""
        if self.progress.exists() or not self._moved.exists():
            return
        for name in self._kinds_noted(self._moved / self._kinds.name):
            (self.path / name).rename(self._aside / name)

    def _go_on(self, former: dict[str, Any], say: Callable[[str], object]) -> None:
        """Say what is damaged, and let there be the files of the batches that are done, and no others."""
        journals = Journals(self.progress)
        if damaged := [path.name for path in journals.damaged()]:
            names = shortened(damaged)
            say(f"'{self.progress}' has lost lines of what is done ({names}): these batches are tested again")
        known = set(journals.files())
        if not former["is_finished"]:  # whoever has the whole test may move its files
            self._check_files(known)
        self._remove_leftovers(known)

    def _check_files(self, known: Iterable[str]) -> None:
        if lost := sorted(name for name in known if not (self.path / name).exists()):
            message = f"the test in '{self.path}' cannot be gone on with: files of what is done are gone "
            raise FolderError(f"{message}({shortened(lost)}). Put them back, or start anew with --overwrite")

    def _remove_leftovers(self, known: Collection[str]) -> None:
        """Remove files of batches that were not finished, which are done again."""
        for kind in self.kinds():
            for path in (self.path / kind).iterdir():
                if path.suffix[1:] in {*FORMATS, "tmp"} and f"{kind}/{path.name}" not in known:
                    path.unlink()

    def finish(self) -> None:
        """Note that the test has ended, and remove what it has replaced."""
        record = self._read_record() or {"identity": {}}
        self._write_record(record["identity"], is_finished=True)
        self._remove_replaced()

    def _remove_replaced(self) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def kinds(self) -> list[str]:
        """Return the kinds of files that a test has left here."""
        return self._kinds_noted(self._kinds)

    def _kinds_noted(self, notes: Path) -> list[str]:
        names = sorted(path.name for path in notes.iterdir()) if notes.is_dir() else []
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
