"""Other people's packages beside ours: each in a folder of its own, run in a process of its own.

read = Theirs(tmp_path, "zarr==2.16.1", "numcodecs==0.12.1")
arrays = read('''import zarr; keep(x=zarr.open(path)["data/action"][:])''', path="mine.zarr")

read = Theirs.alone(tmp_path, "lerobot==0.4.4", "S2ROBOT_LEROBOT_PYTHON")     # what cannot share an environment with ours
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np

_KEEP = """
import json, sys
import numpy as np
globals().update(json.loads(sys.argv[1]))

def keep(**arrays):
    np.savez(kept_as, **arrays)
"""


class Theirs:
    """Packages without what they depend on, from the registry, before those of this environment."""

    def __init__(self, folder: Path, *packages: str, also: Path | None = None):
        self.folder = folder / "theirs"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(self.folder)]
        subprocess.run([*pip, *packages], check=True)
        self.python, self.path = sys.executable, os.pathsep.join(map(str, filter(None, (self.folder, also))))

    @classmethod
    def alone(cls, folder: Path, package: str, existing: str) -> "Theirs":
        """A package and all that it depends on in an environment of its own: the one of the interpreter that the variable
        `existing` names, else a new one."""
        theirs = cls.__new__(cls)
        theirs.folder, theirs.path = folder / "theirs", ""
        theirs.python = os.environ.get(existing, str(theirs.folder / "bin/python"))
        if existing in os.environ:
            theirs.folder.mkdir()
        else:
            venv.create(theirs.folder, with_pip=True)
            subprocess.run([theirs.python, "-m", "pip", "install", "--quiet", package], check=True)
        return theirs

    def __call__(self, script: str, **names: object) -> dict[str, np.ndarray]:
        """What a script keeps; it finds `names` as its own."""
        kept = self.folder / "kept.npz"
        given = json.dumps({**names, "kept_as": str(kept)}, default=str)
        kept.unlink(missing_ok=True)
        done = subprocess.run(
            [self.python, "-c", _KEEP + script, given],
            env=os.environ | {"PYTHONPATH": self.path},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        with np.load(kept, allow_pickle=False) as file:
            return dict(file)
