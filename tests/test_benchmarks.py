"""Benchmarks are rarely run: what they import of ours must exist."""

import re
from pathlib import Path
from textwrap import dedent

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").rglob("*.py"))
OURS = re.compile(r"^ *from (?:s2robot|tests)[\w.]* import (?:\([^)]*\)|.+)", re.M)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_a_benchmark_imports_of_ours_exists(file):
    for statement in OURS.findall(file.read_text(encoding="utf-8")):
        exec(dedent(statement), {})
