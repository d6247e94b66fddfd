"""Benchmarks are run by hand, and rarely: what they import has to be there all the same."""

import ast
import importlib
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_takes_of_ours_is_there(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    # what is tried may be of another version, against which it measures
    tried = {id(node) for block in ast.walk(tree) if isinstance(block, ast.Try) for node in ast.walk(block)}
    for node in ast.walk(tree):
        if (
            id(node) not in tried
            and isinstance(node, ast.ImportFrom)
            and (node.module or "").split(".")[0] in ("s2robot", "tests")
        ):
            room = importlib.import_module(str(node.module))
            for name in (alias.name for alias in node.names):
                if not hasattr(room, name):
                    importlib.import_module(f"{node.module}.{name}")  # a room of that name
