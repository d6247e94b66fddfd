"""Only a task's own files know what it is about: elsewhere nothing says "cube"."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# CubePick's own; those of envs/experts are of robosuite's tasks
OWN = {"envs/cube_pick.py", "envs/cube_config.py", "envs/cube_picker.py", "envs/world.py"}
# What else may say it, and why; a folder stands for all in it.
EXCEPTIONS = {
    "envs/__init__.py": "registers CubePick with gymnasium",
    "envs/tasks.py": "the registry: names, and the task of datasets that name none",
    "demos/formats/export.py": "joint targets from the deltas of that task's recordings",
    "envs/real": "the arm's scene: an operator lays the cube, the emulator simulates it",
    "s2robot/deployment": "the same scene on the arm: evaluation, recording, the emulator",
    "s2robot/probing": "read-outs of that scene's truth: where its cube is",
    "s2robot/pretraining/render.py": "paints that scene for pre-training",
}


def test_nothing_outside_a_tasks_own_files_says_cube():
    found = {}
    for folder in ("s2robot", "envs", "demos", "policies"):
        for path in (ROOT / folder).rglob("*"):
            file = path.relative_to(ROOT).as_posix()
            linked = re.match(r"s2robot/(envs|demos|policies|configs)/", file)
            if path.suffix not in (".py", ".j2") or linked or file in OWN or file.startswith("envs/experts/"):
                continue
            if re.search("cube", path.read_text(encoding="utf-8"), re.IGNORECASE):
                found[file] = next((e for e in EXCEPTIONS if file == e or file.startswith(f"{e}/")), "")
    assert not [file for file, reason in found.items() if not reason]
    assert set(found.values()) == set(EXCEPTIONS), "an exception that is needed no more"
