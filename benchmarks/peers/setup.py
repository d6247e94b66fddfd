"""A peer in an environment of its own, from the package registry; prints the path of its python.

    python benchmarks/peers/setup.py lerobot      # 7 GB: its torch brings CUDA's libraries
    python benchmarks/peers/setup.py robomimic

It lies in the cache folder ($S2ROBOT_CACHE/peers/<peer>) and is made once. What pip says stands beside it in `<peer>.log`.
"""

import subprocess
import sys
import venv
from pathlib import Path

from s2robot.common.errors import UserError
from s2robot.common.paths import cache_dir

PACKAGES = {
    "lerobot": ["lerobot==0.4.4", "msgpack"],
    "robomimic": [
        "robomimic==0.3.0",
        "six",
        "numpy<2",
        "msgpack",
    ],  # six it forgets to ask for; written for numpy 1
}


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment, made if it is not there.

    Raises:
        UserError: an unknown peer, or one that cannot be installed, with pip's last line.
    """
    if peer not in PACKAGES:
        raise UserError(f"peer: found '{peer}', expected one of {', '.join(PACKAGES)}")
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
