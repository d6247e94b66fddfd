"""The attempts of `s2robot trial` on an arm: those of `s2robot evaluate evaluate=arm`, of two policies in turns.

Nothing that is printed between two attempts depends on which policy acts, except how it moves.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2robot.config import plain
from s2robot.core.errors import UserError, one_of
from s2robot.deployment.evaluate import ArmEvaluation, ArmEvaluationSettings, world_on_arm
from s2robot.deployment.operator import check_operator
from s2robot.deployment.session import Rig
from s2robot.deployment.settings import HostSettings, read_bridge
from s2robot.envs.real.operator.prompts import TrialOperator, Void


class BlindEvaluation(ArmEvaluation):
    """One policy's attempts; `other` is told of a fault, since both share the arm."""

    other: "BlindEvaluation"

    def attempt(self, pair: int) -> bool:
        """Try a pair's position; False: void. EnvError, KeyboardInterrupt: as `ArmEvaluation.run`."""
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
    cfg: DictConfig, settings: Any, stack: ExitStack, folders: Sequence[Path], operator: TrialOperator | None = None,
    **asked: Any,
) -> list[BlindEvaluation]:  # fmt: skip
    """Connect the arm and return the attempts of a and b past the pre-flight; ``stack`` closes all. Raises as `evaluate_on_arm`.

    Args:
        settings: `comparison.trial.TrialSettings`.
        operator: who is asked, in place of a person at a terminal. asked: `read_keys` of `ArmSession`.
    """
    bridge, world, own = read_bridge(cfg), world_on_arm(cfg), ("seed", "videos", "video_size")
    if not settings.live:
        raise UserError("live: expected true (`--live`), since a trial moves the arm, got false")
    given = {key: getattr(settings, key) for key in own}
    evaluation = ArmEvaluationSettings(episodes=settings.pairs, resume=True, **given)
    for stage in world.stages if settings.stages else ():
        one_of("stages", stage, settings.stages)
    if settings.judge == "scene" and (bridge.simulated or not bridge.emulated):
        raise UserError("judge: expected person, except with bridge=emulator, got scene")
    if operator is None:
        check_operator(bridge, asked=settings.judge == "person")
    rigs = list[Rig]()
    for letter, name in (("a", settings.a), ("b", settings.b)):
        where = "url" if name.startswith(("http://", "https://")) else "checkpoint"
        source = HostSettings(**{**plain(cfg.policy), "url": None, where: name})
        rigs.append(Rig(cfg, stack, source, *rigs))
        print(f"policy {letter}: {name}")
        rigs[-1].check(Path(cfg.run_dir) / f"camera_check_{letter}.png", live=True)
    if operator is None and settings.judge == "person":
        operator = TrialOperator()
    if operator is not None and (scene := rigs[0].arm.scene):
        operator.scene = scene.operator()
    found = [BlindEvaluation(rig, evaluation, world, folder, operator=operator, **asked)
             for rig, folder in zip(rigs, folders, strict=True)]  # fmt: skip
    found[0].other, found[1].other = found[1], found[0]
    return found
