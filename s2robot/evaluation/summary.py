"""What the summary of an evaluation says beside its figures, in simulation or on an arm."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.common.errors import UserError
from s2robot.common.provenance import command, versions
from s2robot.envs.cube_config import CubePickConfig


def facts(
    config: CubePickConfig, contract: Mapping[str, Any], changes: list[str], seed: int
) -> dict[str, Any]:
    """What the summary of an evaluation says of policy, world and program, simulated or on an arm."""
    return {
        "encoder": contract["encoder"],
        "robot": config.robot,
        "cameras": list(config.cameras),
        "cube_box": [list(config.box_x), list(config.box_y)],
        "world_changes": changes,
        "success_rule": f"cube {config.success_height * 100:g} cm up for {config.success_hold:g} s",
        "seed": seed,
        "dataset": {k: v for k, v in contract.get("dataset", {}).items() if k != "seeds"},
        "versions": versions(),
        "command": command(),
    }


def refuse_positions_of_demos(contract: dict[str, Any], e: DictConfig, policy: str | Path) -> None:
    """UserError if a position of the evaluation `e` is one that the policy's demos were recorded at."""
    overlap = set((contract.get("dataset") or {}).get("seeds", [])) & set(range(e.seed, e.seed + e.episodes))
    if overlap:
        raise UserError(
            f"evaluate.seed: positions {e.seed} to {e.seed + e.episodes - 1} hold {len(overlap)} that the demos "
            f"of {policy} were recorded at (first {min(overlap)}); choose another evaluate.seed"
        )


def world_changes(trained: dict[str, Any], config: CubePickConfig) -> list[str]:
    """In what the evaluated world differs from the one that the demos were recorded in, a text each."""
    ours = json.loads(json.dumps(asdict(config)))
    defaults = json.loads(json.dumps(asdict(CubePickConfig())))
    trained = defaults | trained  # an older dataset lacks newer settings
    ignored = ("cameras", "image_size")  # checked by name, and drawn as the encoder needs them
    return [f"{k} {trained[k]} -> {v}" for k, v in ours.items() if k not in ignored and trained[k] != v]
