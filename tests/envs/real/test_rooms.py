"""Who may import whom on the bridge."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EMULATOR = "s2robot.envs.real.emulator"
# the verb that starts the emulator is its own way in
PRODUCT = [
    path
    for folder in ("envs/real", "s2robot/deployment", "s2robot/serving")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "emulator" not in path.relative_to(ROOT).parts and path.name != "emulate.py"
]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", PRODUCT, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_drives_an_arm_imports_no_stand_in(path):
    assert not [name for name in imported(path) if name.startswith(EMULATOR)]
