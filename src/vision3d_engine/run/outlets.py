"""What a script writes: messages, numbers, clouds, pictures, and records that are gathered over processes."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from vision3d_engine.core.errors import DataError
from vision3d_engine.core.tree import describe
from vision3d_engine.loop.context import PassContext
from vision3d_engine.loop.records import SampleRecords
from vision3d_engine.loop.registered_metrics import MetricHandle
from vision3d_engine.writers.clouds import as_clouds, as_lines, as_marks
from vision3d_engine.writers.pictures import as_images, finite_numbers
from vision3d_engine.writers.protocol import MetricWriter


class Outlets:
    """The log and the writers of one trainer or tester, as a script uses them.

    Args:
        context: has the log, the writers and the processes.
    """

    def __init__(self, context: PassContext) -> None:
        self._context = context
        self._records = SampleRecords(context.world)
        self._pass: Any = None
        self._told: set[str] = set()

    @property
    def log_file(self) -> str | None:
        """Path of this run's text log; None on all processes but the main one."""
        return self._context.logger.log_file

    def add_writer(self, writer: MetricWriter) -> MetricWriter:
        """Add a writer of numbers beside TensorBoard and ``metrics.jsonl``, and return it; acts on the main process.

        Raises:
            RegistrationError: when it is not a `MetricWriter`.
        """
        self._context.writers.add(writer)
        return writer

    def log(self, message: Any, level: str = "INFO") -> None:
        """Write a message to the console and to the run's log file; an unknown level is written as INFO."""
        self._context.logger.log(message, level)

    def _line_writer(self) -> Callable[[Callable[[], str]], None]:
        """Return what logs a line that a thread puts together later; a `log` of the script's own gets it at once."""
        if getattr(type(self), "log", None) is Outlets.log and "log" not in vars(self):
            return self._context.logger.line
        return lambda make: self.log(make())

    def write_event(self, phase: str, event_dict: Mapping[str, Any], index: int) -> None:
        """Write numbers to TensorBoard (``phase/key``) and ``metrics.jsonl``; tensors are read, so the host waits."""
        self._context.writers.scalars(phase, {key: float(value) for key, value in event_dict.items()}, int(index))

    # What follows is written by a thread of the main process: to TensorBoard, with trainer.write_files to files, and to
    # added writers. It is read from the device where it is called, so the host waits there, and nowhere else.

    def write_points(
        self,
        tag: str,
        points: Any,
        colors: Any = None,
        index: int = 0,
        *,
        labels: Any = None,
        values: Any = None,
        palette: Any = None,
    ) -> None:
        """Write point clouds, for TensorBoard's mesh tab (of more than 20,000 points evenly many are left out) and PLY.

        Points that hold NaN or infinity are left out, with a warning.

        Args:
            tag: name of the clouds.
            points: one cloud ``(N, 3)``, several of one size ``(B, N, 3)``, or a list of ``(N, 3)`` of any sizes.
            colors: in the layout of the points, or one colour ``(3,)``, or a list of one for each cloud; whole numbers,
                and floats of which one is above 1, are 0 to 255; other floats are 0 to 1.
            index: step on TensorBoard's axis, and in the name of the file.
            labels: instead of colours, the class of each point; negative ones (ignored) are grey.
            values: instead of colours, a number for each point, from dark blue over green to yellow.
            palette: colours of the classes, ``(C, 3)``; None for a fixed one.

        Raises:
            DataError: for another shape or type, or numbers of points and colours that differ.
        """
        if self._context.writers.is_here:
            with self._naming("write_points", tag, index) as call:
                clouds = as_clouds(points, colors, labels, values, palette)
                self._say_dropped(call, clouds.dropped, "points")
            self._context.writers.points(tag, clouds.points, clouds.colors, int(index))

    def write_correspondences(  # noqa: PLR0913  clouds, lines, and how good they are
        self,
        tag: str,
        source_points: Any,
        target_points: Any,
        correspondences: Any,
        is_inlier: Any = None,
        index: int = 0,
        *,
        distances: Any = None,
        threshold: float | None = None,
        offset: Any = None,
    ) -> None:
        """Write a grey and a blue cloud with lines between them: inliers green, outliers red, or orange if unknown.

        TensorBoard's mesh tab shows at most 20,000 points and 500 lines, evenly taken, a PLY file all, as its edges.
        Points that hold NaN or infinity are left out with their lines, with a warning.

        Args:
            tag: name of the picture.
            source_points: ``(N, 3)``.
            target_points: ``(M, 3)``.
            correspondences: ``(K, 2)``, whole numbers: rows of source and target that belong together.
            is_inlier: ``(K,)`` booleans.
            index: step on TensorBoard's axis, and in the name of the file.
            distances: instead of booleans, ``(K,)`` numbers; those up to the threshold are inliers.
            threshold: see distances.
            offset: ``(3,)``, by which the target is moved for the picture; zeros leave it where it is, None places it
                beside the source, along x.

        Raises:
            DataError: for another shape or type, or a row that a cloud does not have.
        """
        if self._context.writers.is_here:
            with self._naming("write_correspondences", tag, index) as call:
                marks = as_marks(is_inlier, distances, threshold)
                lines = as_lines(source_points, target_points, correspondences, marks, offset)
                self._say_dropped(call, lines.dropped, "points")
            drawn = lines.points, lines.colors, lines.edges, lines.edge_colors
            self._context.writers.lines(tag, *drawn, int(index))

    def write_image(self, tag: str, image: Any, index: int = 0, dataformats: str | None = None) -> None:
        """Write an image, or several of one size.

        Args:
            tag: name of the image.
            image: uint8, or floats from 0 to 1; with 1, 3 or 4 channels, or none.
            index: step on TensorBoard's axis, and in the name of the file.
            dataformats: its axes, one of HW, CHW, HWC, NCHW, NHWC; may be left out where only one fits the shape.

        Raises:
            DataError: for another type, floats out of 0 to 1 or NaN, or a shape that does not fit or fits two.
        """
        if self._context.writers.is_here:
            with self._naming("write_image", tag, index):
                images = as_images(image, dataformats)
            self._context.writers.images(tag, images, int(index), dataformats="NHWC")

    def write_figure(self, tag: str, figure: Any, index: int = 0) -> None:
        """Write a figure of matplotlib; it is drawn before this returns, and stays open.

        Raises:
            DataError: when it is no figure.
        """
        if self._context.writers.is_here:
            with self._naming("write_figure", tag, index):
                is_module = isinstance(figure, ModuleType)  # pyplot has a savefig too
                if is_module or not hasattr(figure, "savefig"):
                    got = f"the module {figure.__name__}" if is_module else describe(figure)
                    raise DataError(f"got {got}, expected a figure of matplotlib, such as plt.gcf()")
            self._context.writers.figures(tag, figure, int(index))

    def write_histogram(self, tag: str, values: Any, index: int = 0) -> None:
        """Write how the numbers of a tensor are distributed, in 64 bins; NaN and infinity are left out, with a warning.

        Raises:
            DataError: when they are no real numbers.
        """
        if self._context.writers.is_here:
            with self._naming("write_histogram", tag, index) as call:
                numbers, dropped = finite_numbers(values)
                self._say_dropped(call, dropped, "numbers")
                if not len(numbers):
                    self._say_once(call, "there is no number to count; no histogram is written")
            if len(numbers):
                self._context.writers.histograms(tag, numbers, int(index))

    def write_text(self, tag: str, text: Any, index: int = 0) -> None:
        """Write a text; TensorBoard reads it as Markdown."""
        if self._context.writers.is_here:
            with self._naming("write_text", tag, index):
                self._context.writers.text(tag, str(text), int(index))

    @contextmanager
    def _naming(self, name: str, tag: Any, index: Any) -> Iterator[str]:
        """Check what all calls take, and let an error of a block say in which call it arose."""
        if not isinstance(tag, str):
            raise DataError(f"{name}: got the tag {describe(tag)}, expected a text. The tag is the first argument")
        call = f"{name}('{tag}')"
        try:
            _check_index(index)
            yield call
        except DataError as error:
            raise DataError(f"{call}: {error}") from error

    def _say_dropped(self, call: str, count: int, what: str) -> None:
        """Warn of what a call leaves out, once a call and tag."""
        if count:
            self._say_once(call, f"{count:,} {what} hold NaN or infinity and are left out")

    def _say_once(self, call: str, what: str) -> None:
        if call not in self._told:
            self._told.add(call)
            self.log(f"{call}: {what}", "WARNING")

    def register_metric(self, name: str, metric: Any) -> MetricHandle:
        """Register a number over a whole set, and return what takes in its batches, in training, validation and test.

        Each pass over a set has a state of its own, which starts empty; what processes have counted is merged at its
        end. The numbers are then in ``summary_dict``, the log, ``metrics.jsonl`` and TensorBoard as ``NAME/KEY``, of
        one of several validation sets as ``SET/NAME/KEY``; a metric with a single number is called NAME. A pass in
        whose steps it is not updated has none of them.

        Args:
            name: what its numbers are called.
            metric: one of `vision3d_engine.metrics`, one of torchmetrics, or any object with ``update``, ``compute``,
                ``reset`` and, for several processes, ``merge_state(others)``. It stays as it is: passes work with
                copies, so keep and update what is returned.

        Raises:
            RegistrationError: when it lacks one of these methods or cannot be merged, and for a name that is taken; in
                a run, when some processes have registered other metrics.
        """
        return self._context.metrics.register(name, metric)

    def add_records(self, records: Iterable[Any]) -> None:
        """Keep one record for each sample of the batch at hand, for `gather_records`; in a validation or test step.

        Args:
            records: anything that can be pickled, in the order of the samples; tensors should be on the host.
        """
        self._records.add(records, self._pass.runner.place[1])

    def gather_records(self, name: str | None = None) -> list[Any]:
        """Return the records of all processes on the main one, in the order of the data set; elsewhere an empty list.

        To be called by all processes, in ``after_val_epoch`` or ``after_test_epoch``; a loader that does not shuffle
        has the data set's order.

        Args:
            name: of a validation set, where several are registered; None for the records of all, set after set.

        Raises:
            RegistrationError: for a name that no set has.
        """
        return self._records.gather(name)


def _check_index(index: Any) -> None:
    try:
        is_whole = int(index) == index
    except (TypeError, ValueError, OverflowError):
        is_whole = False
    if not is_whole:
        raise DataError(f"index: got {describe(index)}, expected a whole number, such as self.total_steps")
