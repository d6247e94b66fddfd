"""A peer's policy in our world, over a pipe, with our evaluator: 128 positions that no demo has, records, two films.

    python -m benchmarks.peers.evaluate <out> <pixels> <positions> <command that acts>
    python -m benchmarks.peers.evaluate runs/act 256 32 <python of lerobot> -m benchmarks.peers.lerobot_peer act <out>

Positions are 60000 and on. If nothing succeeded in the first 32 it ends there. It goes on where it was killed.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.peer import ANSWERS, read, write
from s2robot.common.errors import UserError
from s2robot.common.files import write_json
from s2robot.common.paths import shipped_demos
from s2robot.demos.store import EpisodeStore
from s2robot.envs.tasks import settings_of
from s2robot.evaluation.film import film_some
from s2robot.evaluation.records import summarise
from s2robot.evaluation.rollouts import run_episodes

ROOT = Path(__file__).resolve().parents[2]
FIRST, HOPELESS = 60_000, 32  # position; so many without a success are enough


class PipedPlanner:
    """A policy in a process of another environment, as an evaluation asks for it: one action after each observation.

    Args:
        command: starts a process that speaks as `peer.serve`. Started where the episodes run, at the first one.
    """

    execute, every_step = 1, False  # the policy keeps its own queue of actions

    def __init__(self, command: Sequence[str]):
        self.command, self._process = list(command), None  # started at the first episode
        self._spent = {"act_s": 0.0, "act_cpu_s": 0.0, "actions": 0.0}

    @property
    def process(self) -> Any:
        """The policy's process, which has greeted. Raises UserError if it ended before."""
        if self._process is None:
            ours, theirs = os.pipe()
            own = {"PYTHONPATH": str(ROOT), ANSWERS: str(theirs)}
            self._process = subprocess.Popen(
                self.command,
                env={**os.environ, **own},
                stdin=subprocess.PIPE,
                stdout=2,  # what it prints is not for us
                pass_fds=(theirs,),
            )
            os.close(theirs)
            self._answers = os.fdopen(ours, "rb")
            self.cameras = self._answer()["cameras"]
        return self._process

    def _answer(self) -> Any:
        answer = read(self._answers)
        if answer is None:
            code = self._process.wait()  # type: ignore[union-attr]
            raise UserError(f"{shlex.join(self.command)}: ended with code {code}, expected an answer")
        return answer

    def reset(self, info: Mapping) -> None:
        write(self.process.stdin, {"reset": int(info["seed"])})

    def plan(self, observation: Mapping) -> np.ndarray:
        images = {name: observation["images"][name][-1] for name in self.cameras}
        write(self.process.stdin, {"images": images, "proprio": observation["proprio"][-1]})
        answer = self._answer()
        for key, value in (("act_s", answer["seconds"]), ("act_cpu_s", answer["cpu"]), ("actions", 1)):
            self._spent[key] += value
        return answer["action"][None]  # (1, A)

    def about(self) -> dict[str, float]:
        return {}

    def spent(self) -> dict[str, float]:
        return dict(self._spent)


def evaluate(command: Sequence[str], out: Path, size: int, episodes: int) -> dict[str, Any]:
    """Run what is missing of the positions; writes episodes.jsonl, films and summary.json into `out`."""
    world = settings_of(EpisodeStore.open(shipped_demos("xarm7_cube")).attrs["env_config"], image_size=size)
    out.mkdir(parents=True, exist_ok=True)
    identity, journal = {"command": shlex.join(command), "size": size}, out / "episodes.jsonl"
    spent: dict[str, float] = {}
    for count in sorted({min(HOPELESS, episodes), episodes}):
        found = run_episodes(world, PipedPlanner(command), count, FIRST, 1, journal, settings=identity)
        spent = {key: round(spent.get(key, 0) + value, 3) for key, value in found.spent.items()}
        if not any(record["success"] for record in found.records):
            break
    film_some(world, found, 2, 128, out, 1)
    summary = {**summarise(found.records, world.stages), "spent": spent, **identity}
    write_json(out / "summary.json", summary)
    return summary


if __name__ == "__main__":
    place, pixels, positions, *command = sys.argv[1:]
    print(json.dumps(evaluate(command, Path(place), int(pixels), int(positions))))
