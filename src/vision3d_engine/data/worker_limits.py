"""What to do where data workers have met a limit of the system: shared memory, or open files."""

import contextlib
import re
import shutil

try:
    import resource
except ImportError:  # Windows: it has no such limits
    resource = None

_SHARED_MEMORY = re.compile(
    r"bus error|out of shared memory|unable to (mmap|allocate shared memory|resize file|open shared memory object)",
    re.IGNORECASE,
)
_ENOUGH_FILES = 65_536  # not without bounds: some libraries walk all numbers that files may have
# An EOFError that says nothing: a worker could open no file to hand over the descriptor of a tensor.
_OPEN_FILES = re.compile(r"too many open files|ancdata|\[errno 24\]|^EOFError\(\)$", re.IGNORECASE)
_FOLDER = "/dev/shm"  # noqa: S108  where Linux keeps what processes share


def advice_on(text: str, is_bus_error: bool = False) -> str | None:
    """Return which limit an error tells of, with its figures, and what to do; None for other errors.

    Args:
        text: the message.
        is_bus_error: whether a worker was ended by SIGBUS.
    """
    if _OPEN_FILES.search(text):
        return _FILES.format(_most_files())
    return _of_memory() if is_bus_error or _SHARED_MEMORY.search(text) else None


def allow_open_files() -> None:
    """Let this process, and those that it starts, have as many files open as it may allow itself."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may have a smaller limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _most_files() -> int | str:
    """Return how many files this process may have open."""
    return "unknown" if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _of_memory() -> str:
    try:
        total, _, free = shutil.disk_usage(_FOLDER)
        figures = f"{_FOLDER} has {total / 2**20:,.0f} MiB, of which {free / 2**20:,.0f} MiB are free now"
    except OSError:
        figures = f"{_FOLDER} cannot be read"
    return _MEMORY.format(figures)


_MEMORY = (
    "The memory that processes share, in which workers hand over their batches, is too small for them: {}. Make it "
    "larger (docker run --shm-size=8g, or --ipc=host), use fewer num_workers, a smaller prefetch_factor, smaller "
    "batches, or num_workers=0"
)
_FILES = (
    "The process may open no more files (limit in force: {}), and each tensor that a worker hands over is one. Raise "
    "it (ulimit -n 65536 in the shell that starts the run), or call "
    'torch.multiprocessing.set_sharing_strategy("file_system") before loaders are made; also use fewer num_workers or '
    "a smaller prefetch_factor, and close the files that the data set opens"
)
