"""Only a task's own files refer to its objects: the word "cube" appears in no other file."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# files of CubePick; envs/experts belongs to robosuite's tasks
OWN = {"envs/cube_pick.py", "envs/cube_config.py", "envs/cube_picker.py", "envs/world.py"}
# Other files that may contain the word, with the reason; a folder covers all of its files.
EXCEPTIONS = {
    "envs/__init__.py": "registers CubePick with gymnasium",
    "envs/tasks.py": "the registry: names, and the default task of a dataset",
    "demos/formats/export.py": "joint targets from the deltas of that task's recordings",
    "envs/real": "the arm's scene: an operator places the cube, the emulator simulates it",
    "s2robot/deployment": "the same scene on the arm: evaluation, recording, the emulator",
    "s2robot/probing": "reads out that scene's ground truth, the position of its cube",
    "s2robot/pretraining/render.py": "renders that scene for pre-training",
}


def test_only_the_tasks_own_files_mention_the_cube():
    reasons = {}
    for folder in ("s2robot", "envs", "demos", "policies"):
        for path in (ROOT / folder).rglob("*"):
            file = path.relative_to(ROOT).as_posix()
            linked = re.match(r"s2robot/(envs|demos|policies|configs)/", file)
            if path.suffix not in (".py", ".j2") or linked or file in OWN or file.startswith("envs/experts/"):
                continue
            if re.search("cube", path.read_text(encoding="utf-8"), re.IGNORECASE):
                reasons[file] = next((e for e in EXCEPTIONS if file == e or file.startswith(f"{e}/")), "")
    assert not [file for file, reason in reasons.items() if not reason]
    assert set(reasons.values()) == set(EXCEPTIONS), "an exception is no longer needed"
