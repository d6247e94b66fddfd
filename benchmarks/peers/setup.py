"""Install a peer into an environment of its own, and print the path of its interpreter.

    python benchmarks/peers/setup.py lerobot      # 7 GB: its torch brings CUDA's libraries
    python benchmarks/peers/setup.py robomimic

The environment is $S2ROBOT_CACHE/peers/<peer>, with pip's output in `<peer>.log` beside it.
"""

import subprocess
import sys
import venv
from pathlib import Path

from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir

PACKAGES = {  # robomimic does not declare six, and was written for numpy 1
    "lerobot": ["lerobot==0.4.4"],
    "robomimic": ["robomimic==0.3.0", "six", "numpy<2"],
}


def python_of(peer: str) -> Path:
    """Return the interpreter of a peer's environment, which is created once."""
    if peer not in PACKAGES:
        raise UserError(f"peer: expected one of {', '.join(PACKAGES)}, got '{peer}'")
    home = cache_dir("peers") / peer
    python, done, log = home / "bin/python", home / "done", home.with_suffix(".log")
    if not done.exists():
        venv.create(home, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", *PACKAGES[peer]]
        with open(log, "w") as out:
            code = subprocess.run(pip, stdout=out, stderr=subprocess.STDOUT).returncode
        if code:
            raise UserError(f"{peer} cannot be installed: {log.read_text().splitlines()[-1]} ({log})")
        done.touch()
    return python


if __name__ == "__main__":
    try:
        print(python_of(*sys.argv[1:2] or [""]))
    except UserError as error:
        sys.exit(str(error))
