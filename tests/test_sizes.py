"""How large a file, a class and a function may be, so that each can be read at one sitting."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "vision3d_engine"
FILES = sorted(SOURCE.rglob("*.py"))
MOST_LINES = {ast.ClassDef: 250, ast.FunctionDef: 40, ast.AsyncFunctionDef: 40}


def lines_of(node):
    return node.end_lineno - node.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_has_at_most_320_lines_a_class_250_and_a_function_40(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 320
    for node in ast.walk(ast.parse(text)):
        if type(node) in MOST_LINES:
            assert lines_of(node) <= MOST_LINES[type(node)], f"{node.name} is too long"


def test_what_trainers_and_testers_share_is_small():
    tree = ast.parse((SOURCE / "run" / "engine.py").read_text())
    (engine,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert lines_of(engine) <= 120


def test_the_session_is_handed_out_once_and_not_reached_through():
    assert sum(path.read_text().count("self._session.") for path in FILES) <= 20
