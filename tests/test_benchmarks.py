"""Benchmarks are run by hand, and rarely: what they import has to be there all the same."""

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))
# In a process of its own: `ast.parse` of CPython 3.11 fails when another thread parses at the same time. Imports inside a
# `try` may be of another version, against which the benchmark measures.
IMPORTS = """
import ast, json, sys
found = {}
for file in sys.argv[1:]:
    tree = ast.parse(open(file, encoding="utf-8").read())
    tried = {id(n) for block in ast.walk(tree) if isinstance(block, ast.Try) for n in ast.walk(block)}
    found[file] = [
        (str(n.module), [alias.name for alias in n.names])
        for n in ast.walk(tree)
        if isinstance(n, ast.ImportFrom) and id(n) not in tried and (n.module or "").split(".")[0] in ("s2robot", "tests")
    ]
print(json.dumps(found))
"""


@cache
def imports() -> dict[str, list]:
    words = [sys.executable, "-c", IMPORTS, *map(str, FILES)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_takes_of_ours_is_there(file):
    for name, parts in imports()[str(file)]:
        module = importlib.import_module(name)
        for part in parts:
            if not hasattr(module, part):
                importlib.import_module(f"{name}.{part}")
