"""The attempts of `s2robot trial` with policies that run elsewhere: a person runs them and enters the outcomes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from s2robot.core.errors import UserError
from s2robot.core.files import read_text
from s2robot.core.settings import read
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.operator.prompts import Placing, TrialOperator, Void
from s2robot.evaluation.records import Journal


class _ByHand(NamedTuple):
    name: str
    places: Sequence[str]
    seed: int
    operator: TrialOperator
    journal: Journal

    def attempt(self, pair: int) -> None:
        print(f"{self.places[pair]}\nRun {self.name}.", flush=True)
        try:
            success = self.operator.success()
        except Void:
            return
        stages = self.operator.stages
        reached = (stages[-1] if success else self.operator.stage()) if stages else ""
        record = {"episode": pair, "seed": self.seed + pair, "success": success, "stage": reached}
        unknown = {"steps": 0, "time_to_success_s": None, "video": None, "place": self.places[pair]}
        self.journal.append(record | unknown, np.zeros((0, 1), np.float32))

    def finish(self, pairs: int) -> None:
        """Do nothing: everything is on disk."""


def by_hand(
    settings: Any, env: Any, folders: Sequence[Path], operator: TrialOperator | None = None
) -> list[_ByHand]:
    """Return the attempts of a and b, whose outcomes ``operator`` enters. Raises UserError for fewer positions than
    pairs, or others than when the trial began.

    settings: `comparison.trial.TrialSettings`. env: settings of the world that samples positions, if no file lists them.
    """
    seed, operator = settings.seed, operator or TrialOperator()
    if settings.places is None:
        world = read(CubePickConfig, env)
        places = [Placing.draw(world, seed + pair).instruction for pair in range(settings.pairs)]
    else:
        places = [line for line in read_text(settings.places).splitlines() if line.strip()]
    if (lines := len(places)) < settings.pairs:
        raise UserError(f"pairs: expected <= {lines} (lines of {settings.places}), got {settings.pairs}")
    operator.stages, attempts = settings.stages or (), []
    for name, folder in zip((settings.a, settings.b), folders, strict=True):
        journal = Journal(folder / "episodes.jsonl", {"policy": name, "seed": seed})
        for pair, place in enumerate(places):
            if (began := journal.records.get(pair, {}).get("place", place)) != place:
                got = f"expected pair {pair + 1} at {began!r}, as when the trial began, got {place!r}"
                raise UserError(f"{settings.places or 'env'}: {got}")
        attempts.append(_ByHand(name, places, seed, operator, journal))
    return attempts
