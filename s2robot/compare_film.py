"""One cube position as two arms met it, side by side.

film_pair(env_config, record_a, actions_a, record_b, actions_b, run / "videos/10012.mp4", ("base + S²", "base"))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from envs.cube_pick import CubePickConfig
from s2robot.errors import UserError
from s2robot.evaluate import rerun
from s2robot.video import Side, write_pair


def film_pair(
    env_config: CubePickConfig,
    record_a: Mapping[str, Any],
    actions_a: np.ndarray,
    record_b: Mapping[str, Any],
    actions_b: np.ndarray,
    path: Path,
    labels: tuple[str, str] = ("a", "b"),
) -> Path:
    """Run two episodes of one position again and write them as one video, a on the left, with a poster beside it.

    records: lines of episodes.jsonl; actions: what was executed, (T, 8) each. `env_config` decides the size of
    the pictures. Raises UserError if the records are of different positions or an episode ends otherwise than
    its record says.
    """
    if record_a["seed"] != record_b["seed"]:
        raise UserError(
            f"{path}: found positions {record_a['seed']} and {record_b['seed']}, expected one for both arms"
        )
    sides = []
    for label, record, actions in zip(labels, (record_a, record_b), (actions_a, actions_b), strict=True):
        frames, stages = rerun(env_config, record, actions)
        if stages[-1] != record["stage"]:
            raise UserError(
                f"{path}: {label}: position {record['seed']} ended in stage {stages[-1]} when run again, "
                f"expected {record['stage']}; the simulation is not repeatable here or the actions are not its own"
            )
        sides.append(Side(label, frames, record, stages))
    return write_pair(path, *sides, rate=env_config.rate_hz)
