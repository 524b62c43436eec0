"""The command ``vision3d-engine``."""

import sys
from collections.abc import Sequence

from vision3d_engine.core.errors import EngineError


def main(argv: Sequence[str] | None = None) -> None:
    """Run a command; an error of the engine ends the program with its message instead of a traceback."""
    import tyro

    from vision3d_engine.core.cli import without_script_flags
    from vision3d_engine.demo.train import DemoSettings, run_demo

    def demo(settings: tyro.conf.OmitArgPrefixes[DemoSettings]) -> None:
        """Train a point-cloud classifier on ten kinds of everyday shapes; nothing is downloaded."""
        run_demo(settings)

    without_script_flags()
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"demo": demo}, prog="vision3d-engine", description="A training engine for 3D vision.", args=argv
        )
    except EngineError as error:
        sys.exit(f"error: {error}")
