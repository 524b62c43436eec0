"""The clouds that a training has written, step by step."""

from pathlib import Path

from vision3d_engine.report.panels import Panel, panels_of
from vision3d_engine.results.sample_files import read_sample
from vision3d_engine.writers.files import listed_files


class TrainingSteps:
    """The clouds that a training has written as files (``trainer.write_files``).

    Args:
        run: the run folder.

    Attributes:
        steps: those of each tag, in order.
    """

    def __init__(self, run: Path) -> None:
        self._files: dict[str, dict[int, dict[Path, None]]] = {}
        for tag, step, path in listed_files(run / "files"):
            if path.suffix == ".ply" and path.is_file():
                self._files.setdefault(tag, {}).setdefault(step, {})[path] = None
        self.steps = {tag: sorted(by_step) for tag, by_step in sorted(self._files.items())}

    def panels(self, tag: str, step: int) -> list[Panel]:
        """Return the clouds of a step.

        Raises:
            ResultError: for a file that cannot be read.
        """
        found = [panel for path in self._files[tag][step] for panel in panels_of(read_sample(path))[:1]]
        return [panel._replace(title=tag if len(found) == 1 else f"{tag} {place}") for place, panel in enumerate(found)]
