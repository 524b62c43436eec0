"""The command ``vision3d-engine``; each function below is a subcommand, its docstring the help."""

import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from vision3d_engine.checkpoint.export import consolidate, describe_checkpoint, export_weights
from vision3d_engine.core.children import exiting_on_signals
from vision3d_engine.core.cli import ignore_command_line, own_words
from vision3d_engine.core.errors import ConfigError, EngineError, listed
from vision3d_engine.demo.train import DemoSettings, run_demo
from vision3d_engine.diff import diff
from vision3d_engine.replay import replay, replay_file
from vision3d_engine.replay.plan import Target, Vary
from vision3d_engine.report.page import write_report
from vision3d_engine.results.comparison import compare
from vision3d_engine.verification import verify_resume
from vision3d_engine.viewer.server import Viewer, require_viser


def demo(settings: OmitArgPrefixes[DemoSettings]) -> None:
    """Train a point-cloud classifier on ten kinds of everyday shapes; nothing is downloaded."""
    run_demo(settings)


def export(checkpoint: Positional[Path], target: Positional[Path]) -> None:
    """Write the weights of a checkpoint as a safetensors file.

    Args:
        checkpoint: the checkpoint to read.
        target: the file to write, such as model.safetensors.
    """
    print(f"wrote {export_weights(checkpoint, target)} tensors to {target}")


def consolidate_shards(source: Positional[Path], target: Positional[Path]) -> None:
    """Write the checkpoint of a sharded run (trainer.parallel: fsdp2) as one ordinary file.

    Args:
        source: a checkpoint, its folder of shards, or a run, whose checkpoint.pth is then meant.
        target: the file to write, such as out.pth; it loads, and resumes, on one process.
    """
    print(f"wrote {consolidate(source, target):,} weights, and all else, to {target}")


def inspect(checkpoint: Positional[Path]) -> None:
    """Say what a checkpoint holds: date, moment, parts, and the shape of every weight.

    Args:
        checkpoint: the checkpoint to read; its checksums are verified.
    """
    print(describe_checkpoint(checkpoint))


def verify(script: Positional[Path], steps: int = 12, kills: int = 6, seed: int = 0) -> None:
    """Prove that a kill and a resume change no bit of a training script; its own arguments follow its name.

    Args:
        script: the script, such as train.py.
        steps: training steps to run and to compare, in three epochs.
        kills: at how many places to kill and resume; 26 are every kind of place, by SIGKILL and SIGTERM.
        seed: chooses among places of one kind.
    """
    with exiting_on_signals():
        print(verify_resume(script, _OF_SCRIPT, steps, kills, seed, say=partial(print, flush=True)))


def replay_step(  # noqa: PLR0913, PLR0917  its options
    what: Positional[Path],
    step: int | None = None,
    epoch: int | None = None,
    iteration: int | None = None,
    script: Path | None = None,
    pdb: bool = False,
    vary: Vary | None = None,
    view: bool = False,
    rank: int | None = None,
    processes: Literal[1] | None = None,
    run: str | None = None,
) -> None:
    """Run one step of a run again, to the bit, and look into it; arguments of the script's own follow behind --.

    Args:
        what: the script, such as train.py; or a file with a step, such as debug/step-000123.pt.
        step: the step, counted from the start of the run.
        epoch: instead of that the epoch, with iteration.
        iteration: the iteration in the epoch.
        script: the script of a file with a step.
        pdb: open python's debugger where the step begins.
        vary: say whether it is finite in float64 (precision), or without each of its samples in turn (sample).
        view: open the clouds of its batch in the browser afterwards.
        rank: of a run of several processes the one whose share is replayed, in one, from a checkpoint of the very step.
        processes: 1 to replay a run of several processes in one from any checkpoint, equal to a tolerance.
        run: run folder of the trainer whose step it is; without it the first of the script that makes the step.
    """
    if script is not None or what.suffix in _OF_FILES:
        _check_file(what, script, step=step, epoch=epoch, iteration=iteration, rank=rank, processes=processes)
    with _clouds_shown() if view else nullcontext() as clouds, exiting_on_signals():
        looks: dict[str, Any] = {"debugger": pdb, "vary": vary, "clouds": clouds, "run": run}
        if script is not None:
            text, objection = replay_file(what, script, _OF_SCRIPT, **looks)
        else:
            target, share = Target(step, epoch, iteration), {"rank": rank, "in_one_process": processes is not None}
            text, objection = replay(what, _OF_SCRIPT, target, **share, **looks)
        print(text, flush=True)
        if objection:
            raise EngineError(objection)


_OF_FILES = {".pt", ".pth"}


def _check_file(what: Path, script: Path | None, **of_runs: int | None) -> None:
    """Refuse what does not go with a file that holds a step."""
    if script is None:
        raise ConfigError(f"replay got '{what}': a file with a step needs --script SCRIPT, as in --script train.py")
    if given := [f"--{name}" for name, value in of_runs.items() if value is not None]:
        message = f"replay got {listed(given)} beside '{what}', which holds one step of one process. Expected is a file"
        raise ConfigError(f"{message} with --script alone, or a script with --step N")


@contextmanager
def _clouds_shown() -> Iterator[str]:
    """Give a block a folder, and show in the browser what it has written there, also behind an error."""
    require_viser()
    with tempfile.TemporaryDirectory(prefix="view-") as folder:
        try:
            yield folder
        except EngineError as error:
            print(f"error: {error}", file=sys.stderr)
            _show(folder)
            sys.exit(1)
        _show(folder)


def _show(folder: str) -> None:
    if any(Path(folder).iterdir()):
        view(Path(folder))


def diff_runs(
    a: Positional[Path], b: Positional[Path], everything: Annotated[bool, tyro.conf.arg(name="all")] = False
) -> None:
    """Say how two runs differ: settings, versions, data, the first step with other numbers, and what differed there.

    Exit code 0: all numbers that both have recorded are the same to the bit. 1: they are not, or there are none.

    Args:
        a: the folder of a run, which may still be under way.
        b: that of another one.
        everything: name every row, also of what changes no number.
    """
    text, are_same = diff(a, b, everything)
    print(text)
    if not are_same:
        sys.exit(1)


def table(
    runs: Positional[tuple[Path, ...]], per: str | None = None, numbers: tuple[str, ...] = (), markdown: bool = False
) -> None:
    """Print the results of tests side by side: their summaries, or the means of groups of cases.

    Args:
        runs: folders of runs that were tested, each with all its tests, or RUN:NAME for one of them.
        per: a regular expression of case names whose group names a sequence, such as '^(.*)/'; a sequence has a row.
        numbers: which numbers to show; all by default.
        markdown: print Markdown.
    """
    print(compare(runs, per, numbers, markdown))


def report(
    run: Positional[Path],
    output: Path | None = None,
    by: str | None = None,
    worst: Literal["largest", "smallest"] | None = None,
    cases: int = 8,
) -> None:
    """Write one page of HTML about a run: curves, classes, the test and its worst cases as pictures, settings, notes.

    Args:
        run: the folder of a run, which may still be under way, or RUN:NAME for one of several tests in it.
        output: the file to write; report.html in the folder of the run by default.
        by: the number by which cases are the worst; what the tester's worst_by says by default.
        worst: whether its largest or its smallest are the worst; likewise, else the largest.
        cases: how many cases are shown.
    """
    print(f"wrote {write_report(run, output, by, worst, cases)}")


def view(
    run: Positional[Path],
    host: str = "127.0.0.1",
    port: int = 8080,
    by: str | None = None,
    worst: Literal["largest", "smallest"] | None = None,
) -> None:
    """Look at the clouds of a run in the browser: cases of its test, sorted by a number, and steps of its training.

    Args:
        run: the folder of a run, which may still be under way, or RUN:NAME for one of several tests in it.
        host: where it listens: this machine alone by default, 0.0.0.0 for all networks.
        port: the port, or the next one that is free.
        by: the number by which cases are sorted; what the tester's worst_by says by default.
        worst: whether its largest or its smallest come first; likewise, else the largest.
    """
    viewer = Viewer(run, host, port, by, worst)
    print(f"http://{host}:{viewer.port}  (Ctrl-C ends it)")
    print(f"from another machine: ssh -L {viewer.port}:localhost:{viewer.port} {platform.node()}", flush=True)
    try:
        viewer.wait()
    finally:
        viewer.close()


# The arguments of the script that verify-resume or replay is given.
_OF_SCRIPT: list[str] = []
_COMMANDS = {
    "consolidate": consolidate_shards,
    "demo": demo,
    "diff": diff_runs,
    "export": export,
    "inspect": inspect,
    "replay": replay_step,
    "report": report,
    "table": table,
    "verify-resume": verify,
    "view": view,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error of the engine ends the program with its message instead of a traceback."""
    ignore_command_line()
    words = own_words() if argv is None else list(argv)
    own, _OF_SCRIPT[:] = _split(words)
    try:
        with _told_where_arguments_go(words):
            tyro.extras.subcommand_cli_from_dict(
                _COMMANDS, prog="vision3d-engine", description="A training engine for 3D vision.", args=own
            )
    except EngineError as error:
        sys.exit(f"error: {error}")


@contextmanager
def _told_where_arguments_go(words: Sequence[str]) -> Iterator[None]:
    """Say behind the parser's error how a replay is told the arguments of its script, where nothing has told them."""
    try:
        yield
    except SystemExit as end:
        if end.code and words[:1] == ["replay"] and "--" not in words and not isinstance(end.code, str):
            message = (
                "error: the script's own arguments go behind --, as in vision3d-engine replay train.py --step 3 -- "
            )
            print(f"{message}--my_flag 3", file=sys.stderr)
        raise


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    """Return our own words, and those that belong to the script that is named.

    Those of ``replay`` begin at ``--``, those of ``verify-resume`` behind the script.
    """
    if words[:1] == ["replay"]:
        end = words.index("--") if "--" in words else len(words)
        return words[:end], words[end + 1 :]
    scripts = [number for number, word in enumerate(words) if word.endswith(".py")]
    if words[:1] != ["verify-resume"] or not scripts:
        return words, []
    return _split_behind(words, scripts[0])


def _split_behind(words: list[str], script: int) -> tuple[list[str], list[str]]:
    of_script = words[script + 1 :]
    if late := next((word for word in of_script if word.partition("=")[0] == "--kills"), None):
        message = f"{late} stands behind the script, whose own arguments begin there: give it before, as in "
        sys.exit(f"error: {message}vision3d-engine verify-resume --kills 4 {words[script]}")
    return words[: script + 1], of_script
