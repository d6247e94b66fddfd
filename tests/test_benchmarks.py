"""Benchmarks are rarely run: what they import of ours must exist."""

import importlib
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))
# In a process of its own: `ast.parse` of CPython 3.11 fails when another thread parses at the same time.
IMPORTS = """
import ast, json, sys
found = {}
for file in sys.argv[1:]:
    nodes = [n for n in ast.walk(ast.parse(open(file, encoding="utf-8").read())) if isinstance(n, ast.ImportFrom)]
    ours = [n for n in nodes if (n.module or "").split(".")[0] in ("s2robot", "tests")]
    found[file] = [(n.module, [alias.name for alias in n.names]) for n in ours]
print(json.dumps(found))
"""


@cache
def imports() -> dict[str, list]:
    words = [sys.executable, "-c", IMPORTS, *map(str, FILES)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_ours_exists(file):
    for name, parts in imports()[str(file)]:
        module = importlib.import_module(name)
        for part in parts:
            if not hasattr(module, part):
                importlib.import_module(f"{name}.{part}")
