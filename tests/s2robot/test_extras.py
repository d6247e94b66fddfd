"""Extras: a missing package is a one-line error, and the core works without the simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from s2robot.envs.gl import SIMULATOR
from tests import forks
from tests.s2robot.pictures import TRAINING, write_noise

WITHOUT = f"import sys; sys.modules.update(dict.fromkeys({SIMULATOR!r}))\n"  # None: as if not installed


def python(script: str, folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in a separate process without the simulator; the preloaded modules were imported without it, too."""
    env = os.environ | {"S2ROBOT_CACHE": str(folder), forks.ALL: "1"}
    command = [sys.executable, "-c", WITHOUT + script, *map(str, arguments)]
    return forks.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


def test_simulating_verbs_name_the_missing_extra_in_one_line(tmp_path):
    verbs = ["run", "record", "pretrain", "compare", "probe", "emulate", "inspect"]
    script = """
from s2robot.cli import main
for verb in sys.argv[1:]:
    code = main([verb, *({"pretrain": ["kind=scenes"]}.get(verb, []))])
    assert code == 2, (verb, code)
"""
    result = python(script, tmp_path, *verbs)
    assert result.returncode == 0, result.stderr
    missing = "mujoco is not installed: pip install 's2robot[sim]'"
    lines = result.stderr.splitlines()[: len(verbs)]  # zarr may report its thread at exit
    for verb, line in zip(verbs, lines, strict=True):
        assert line.startswith(f"s2robot {verb}: error: ") and line.endswith(missing)


def test_training_and_acting_on_own_demos_need_no_simulator(tmp_path, tiny_encoder):
    write_noise(tmp_path / "own.zarr", {"hand": (64, 64)}, (6, 7))
    script = """
from s2robot.cli import main
code = main(["train", "demos.path=own.zarr", "env.cameras=[hand]", *sys.argv[1:], "hydra.run.dir=out"])
assert code == 0, code
import json, numpy as np
from s2robot.loading import load_policy
actor, encoder, contract = load_policy("out/checkpoint", "cpu")
actor.reset()
frame = np.zeros((encoder.image_size, encoder.image_size, 3), np.uint8)
action = actor.act({"images": {"hand": frame}, "proprio": np.zeros(8, np.float32)})
print("action", json.dumps(action.tolist()))
"""
    result = python(script, tmp_path, *TRAINING, f"encoder.checkpoint={tiny_encoder}")
    assert result.returncode == 0, result.stderr
    action = json.loads(result.stdout.rsplit("action ", 1)[1])
    assert len(action) == 8 and np.isfinite(action).all()
