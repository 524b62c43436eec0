"""The layers of the house: imports point down, and what is slow to load is loaded on use."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vision3d_engine"
ROOMS = ("data", "optim", "metrics", "writers", "logs", "checkpoint", "endpoints", "debug", "results")
LAYERS = (
    ("core",),
    ("distributed",),
    ROOMS,
    ("update",),
    ("loop",),
    ("run",),
    ("trainers", "testers"),
    ("integrations",),
    ("replay",),
    ("report",),
    ("viewer", "diff"),
    ("front",),
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "utils.py")


def room_of(module: str) -> str:
    """``vision3d_engine.loop.runner`` lies in ``loop``; everything outside the rooms is the front."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "front"


def imports_of(path: Path) -> list[str]:
    """All modules that a file imports, also inside functions, and what it takes out of them, which may be modules."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def module_of(path: Path) -> str:
    return ".".join(["vision3d_engine", *path.relative_to(SOURCE).with_suffix("").parts])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_and_rooms_do_not_know_each_other(path):
    here = room_of(module_of(path))
    for name in imports_of(path):
        if not name.startswith("vision3d_engine"):
            continue
        there = room_of(name)
        assert name != "vision3d_engine.utils", f"{path} imports the door for old scripts"
        assert there == here or LEVEL[there] < LEVEL[here], f"{path} ({here}) imports {name} ({there})"


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules each of which is imported by the next one, the first again at the end; empty without a circle."""
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    paths = {module_of(path).removesuffix(".__init__"): path for path in SOURCE.rglob("*.py")}
    imports = {module: {name for name in imports_of(path) if name in paths} for module, path in paths.items()}
    assert sum(map(len, imports.values())) > len(paths), "imports are found"
    assert find_circle(imports) == []


def test_a_circle_is_found_wherever_it_closes():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) in (["b", "c", "b"], ["c", "b", "c"])


DOORS = {
    "argparse": {
        "core/cli.py",
        "core/switches.py",
        "core/plain.py",
        "run/engine.py",
    },  # the latter two name its Namespace only
    "os.environ": {"distributed/launch/launcher.py", "distributed/coordination/failure_detector.py"},
    "torch.distributed": {
        *(f"distributed/{name}.py" for name in ("world", "processes", "launch/process_group")),
        *(f"distributed/coordination/{name}.py" for name in ("store", "transport_errors", "failure_detector")),
        *(f"distributed/parallel/{name}.py" for name in ("wrapping", "ddp", "fsdp2", "shards", "shard_store")),
    },
    "sys.argv": {"core/cli.py"},
    "tensorboard": {"writers/tensorboard.py", "writers/metric_writers.py", "logs/logger.py"},  # two name the first
}


@pytest.mark.parametrize("door", DOORS)
def test_the_outside_world_has_one_door_each(door):
    def mentions(path):
        tree = ast.parse(path.read_text())
        attributes = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        return any(name == door or name.startswith(f"{door}.") for name in attributes) or any(
            door in name for name in imports_of(path)
        )

    found = {str(path.relative_to(SOURCE)) for path in FILES if mentions(path)}
    assert found <= DOORS[door]


def test_importing_the_engine_loads_nothing_that_is_slow():
    slow = ("pydantic", "tyro", "tensorboard", "matplotlib", "loguru", "yaml", "IPython", "viser", "PIL")
    code = f"import vision3d_engine, sys; print([name for name in {slow} if name in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_every_public_name_is_there_and_documented():
    import vision3d_engine

    assert list(vision3d_engine.__all__) == sorted(vision3d_engine.__all__)
    for name in vision3d_engine.__all__:
        assert getattr(vision3d_engine, name).__doc__
