"""The attempts of `s2robot trial` on an arm: those of `s2robot evaluate evaluate=arm`, of two policies in turns.

Nothing that is printed between two attempts depends on which policy acts, except how it moves.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from s2robot.config import plain
from s2robot.core.errors import UserError, one_of
from s2robot.core.settings import Settings, from_yaml, read_some
from s2robot.deployment.evaluate import ArmEvaluation, ArmEvaluationSettings, world_on_arm
from s2robot.deployment.operator import check_operator
from s2robot.deployment.session import Rig
from s2robot.deployment.settings import PolicySettings, read_bridge
from s2robot.envs.real.operator.prompts import TrialOperator, Void


class ArmTrialSettings(Settings, file="trial"):
    a: str
    b: str
    live: bool = from_yaml()
    pairs: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    stages: tuple[str, ...] | None = from_yaml()
    videos: bool = from_yaml()
    video_size: int = from_yaml(ge=16)
    judge: Literal["person", "scene"] = from_yaml()


class BlindEvaluation(ArmEvaluation):
    """One policy's attempts; `other` is told of a fault, since both share the arm."""

    other: "BlindEvaluation"

    @property
    def records(self) -> Mapping[int, Mapping[str, Any]]:
        return self.journal.records

    def attempt(self, pair: int) -> bool:
        """See `comparison.trial.Attempts`. EnvError, KeyboardInterrupt: as `ArmEvaluation.run`."""
        mine, theirs = self.session.runtime, self.other.session.runtime
        if theirs.fault:  # the operator clears it before the arm moves, whoever acts
            mine.loop.watchdog.fault(time.monotonic(), "; ".join(theirs.fault))
        self.session.begun = 0.0
        try:
            with self.session.started():
                mine.stand("the operator is at the table")
                self._episode(pair)
        except Void:
            print("void: it is repeated", flush=True)
            return False
        finally:
            if self.session.begun:  # the operator has said yes
                theirs.clear()
            self.other.session.operator.trouble = self.session.operator.trouble
        return True

    def _tell(self, record: dict[str, Any]) -> None:
        """The counts of one policy would tell which of the two it is."""
        print(f"stored: {'success' if record['success'] else 'no success'}", flush=True)


def on_arm(
    cfg: DictConfig,
    folders: Sequence[Path],
    stack: ExitStack,
    operator: TrialOperator | None = None,
    **asked: Any,
) -> list[BlindEvaluation]:
    """Connect the arm and return the attempts of a and b past the pre-flight; ``stack`` closes all.

    Args:
        operator: who is asked, in place of a person at a terminal. asked: `read_keys` of `ArmSession`.

    Raises: as `evaluate_on_arm`.
    """
    settings, bridge = read_some(ArmTrialSettings, cfg), read_bridge(cfg)
    if not settings.live:
        raise UserError("live: expected true (`--live`), since a trial moves the arm, got false")
    own = settings.model_dump(include={"pairs", "seed", "videos", "video_size"})
    evaluation = ArmEvaluationSettings(world="arm", episodes=own.pop("pairs"), resume=True, **own)
    world = world_on_arm(cfg)
    for stage in world.stages if settings.stages else ():
        one_of("stages", stage, settings.stages or ())
    if settings.judge == "scene" and (bridge.simulated or not bridge.emulated):
        raise UserError("judge: expected person, except with bridge=emulator, got scene")
    if operator is None:
        check_operator(bridge, asked=settings.judge == "person")
    rigs = list[Rig]()
    for name in (settings.a, settings.b):
        where = "url" if name.startswith(("http://", "https://")) else "checkpoint"
        source = PolicySettings(**{**plain(cfg.policy), "url": None, where: name})
        rigs.append(Rig(cfg, stack, source, rigs[0] if rigs else None))
    for letter, rig in zip("ab", rigs, strict=True):
        print(f"policy {letter}: {rig.source.name}")
        rig.check(Path(cfg.run_dir) / f"camera_check_{letter}.png", live=True)
    if operator is None and settings.judge == "person":
        scene = rigs[0].arm.scene
        operator = TrialOperator(scene=scene.operator() if scene else None)
    found = [
        BlindEvaluation(rig, evaluation, world, folder, operator=operator, **asked)
        for rig, folder in zip(rigs, folders, strict=True)
    ]
    found[0].other, found[1].other = found[1], found[0]
    return found
