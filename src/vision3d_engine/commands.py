"""The command ``vision3d-engine``."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vision3d_engine.core.errors import EngineError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error of the engine ends the program with its message instead of a traceback."""
    import tyro
    from tyro.conf import OmitArgPrefixes, Positional

    from vision3d_engine.checkpoint.export import describe_checkpoint, export_weights
    from vision3d_engine.core.cli import without_script_flags
    from vision3d_engine.demo.train import DemoSettings, run_demo

    def demo(settings: OmitArgPrefixes[DemoSettings]) -> None:
        """Train a point-cloud classifier on ten kinds of everyday shapes; nothing is downloaded."""
        run_demo(settings)

    def export(checkpoint: Positional[Path], target: Positional[Path]) -> None:
        """Write the weights of a checkpoint as a safetensors file.

        Args:
            checkpoint: the checkpoint to read.
            target: the file to write, such as model.safetensors.
        """
        say(f"wrote {export_weights(checkpoint, target)} tensors to {target}")

    def inspect(checkpoint: Positional[Path]) -> None:
        """Say what a checkpoint holds: date, moment, parts, and the shape of every weight.

        Args:
            checkpoint: the checkpoint to read; its checksums are verified.
        """
        say(describe_checkpoint(checkpoint))

    without_script_flags()
    commands = {"demo": demo, "export": export, "inspect": inspect}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="vision3d-engine", description="A training engine for 3D vision.", args=argv
        )
    except EngineError as error:
        sys.exit(f"error: {error}")


def say(text: str) -> None:
    """Answer the person at the console."""
    print(text)  # noqa: T201  a command's answer
