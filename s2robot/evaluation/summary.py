"""The facts in the summary of an evaluation, in simulation or on an arm."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from s2robot.core.provenance import command, versions
from s2robot.envs.task import TaskSettings
from s2robot.envs.tasks import DEFAULT
from s2robot.policies import check_contract

# cameras closer than this are the same: rounding of an angle's cosine alone gives some 1e-6 degrees
_LEAST_M, _LEAST_DEGREES = 1e-4, 0.01


def facts(config: TaskSettings, contract: Mapping[str, Any], changes: list[str], seed: int) -> dict[str, Any]:
    """Return what a summary says of policy, world and program."""
    task = {} if config.task == DEFAULT else {"task": config.about()}
    return {
        **task,
        "encoder": contract["encoder"],
        "robot": config.robot,
        "cameras": list(config.cameras),
        **config.placement(),
        "world_changes": changes,
        "success_rule": config.success_rule,
        "seed": seed,
        "dataset": {k: v for k, v in contract.get("dataset", {}).items() if k != "seeds"},
        "training": contract.get("training") or {},
        "versions": versions(),
        "command": command(),
    }


def world_seen_by(world: Any, contract: Mapping[str, Any], image_size: Any, *same: str) -> Any:
    """Return a world with a policy's cameras, which must be some of its own (PolicyError); ``same``: keys that agree."""
    check_contract(contract, cameras=list(world.cameras), **{key: getattr(world, key) for key in same})
    return world.replace(cameras=tuple(contract["cameras"]), image_size=image_size)


def world_changes(trained: Mapping[str, Any], config: TaskSettings) -> list[str]:
    """Return how the evaluated world differs from the one that the demos were recorded in, a text each."""
    newer = {key: value for key, value in config.defaults().items() if key not in trained}  # than the dataset
    ours, before = (json.loads(json.dumps(w.model_dump())) for w in (config, config.replace(**newer)))
    trained = {**before, **trained}
    ignored = ("cameras", "image_size")  # checked by name, and drawn as the encoder needs them
    return [f"{k} {trained[k]} -> {v}" for k, v in ours.items() if k not in ignored and trained[k] != v]


def camera_changes(trained: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Return how the evaluated cameras differ from those of the demos, a text each.

    Both: camera -> `body` that carries it, `position` on that (m), `quaternion` (w, x, y, z), `fovy` (degrees). Facts
    that one side lacks are not compared; nor is `size`, because frames are drawn as the encoder needs them.
    """
    changes = []
    for name, now in ours.items():
        was = trained.get(name) or {}
        known = {key for key in ("body", "position", "quaternion", "fovy") if key in was and key in now}
        if "body" in known and was["body"] != now["body"]:
            changes.append(f"camera {name} on {was['body']} -> {now['body']}")
            continue  # places on two bodies cannot be compared
        moved = math.dist(was["position"], now["position"]) if "position" in known else 0.0
        turned = _angle(was["quaternion"], now["quaternion"]) if "quaternion" in known else 0.0
        if moved > _LEAST_M or turned > _LEAST_DEGREES:
            changes.append(f"camera {name} moved by {100 * moved:.3g} cm and {turned:.3g} degrees")
        if "fovy" in known and abs(was["fovy"] - now["fovy"]) > _LEAST_DEGREES:
            changes.append(f"camera {name} field of view {was['fovy']:g} -> {now['fovy']:g} degrees")
    return changes


def _angle(one: Sequence[float], other: Sequence[float]) -> float:
    """Between two rotations given as quaternions, in degrees."""
    together = abs(sum(a * b for a, b in zip(one, other, strict=True)))
    return math.degrees(2 * math.acos(min(1.0, together / (math.hypot(*one) * math.hypot(*other)))))
