"""Benchmarks rarely run, so this checks that their imports from this project exist."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))
PROJECT_IMPORT = re.compile(r"^ *from (?:s2robot|tests)[\w.]* import (?:\([^)]*\)|.+)", re.M)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_project_imports_of_every_benchmark_exist(file):
    for statement in PROJECT_IMPORT.findall(file.read_text(encoding="utf-8")):
        exec(dedent(statement), {})
