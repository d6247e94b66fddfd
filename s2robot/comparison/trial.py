"""`s2robot trial`: two policies in pairs of attempts from the same position, blinded, until they are told apart.

    s2robot trial a=runs/one b=runs/other --live robot.ip=192.168.1.200 hydra.run.dir=runs/mine   # again: resumes
    s2robot trial a=act b=diffusion by_hand=true places=places.txt         # policies that run elsewhere; not blinded

The run directory holds the attempts of both, in the folders `1` and `2`, of which `order.json` decides which is whose; at the
end episodes.csv and stats.json, as `s2robot stats <folder> sequential=true` would write it.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import Field

from s2robot.comparison.statistics import LEVEL, verdict
from s2robot.comparison.trials import Arm, StatsSettings, compared, report
from s2robot.core.errors import UserError
from s2robot.core.files import claim, read_json, read_text, write_csv, write_json
from s2robot.core.settings import Different, Settings, Stored, from_yaml, read
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.real.operator.prompts import Placing, TrialOperator, Void
from s2robot.evaluation.records import Journal

COLUMNS = ("arm", "position", "success", "stage")
_REMEDY = "choose another hydra.run.dir"


class TrialSettings(Settings, file="trial"):
    a: str = from_yaml(min_length=1)
    b: str = from_yaml(min_length=1)
    by_hand: bool = from_yaml()
    places: Path | None = from_yaml()
    pairs: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    stages: Annotated[tuple[str, ...], Different, Field(min_length=2)] | None = from_yaml()

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "b", self.a != self.b, "another policy than a"
        yield "places", self.places is None or self.by_hand, "null without by_hand=true", str(self.places)


class Attempts(Protocol):
    """One policy's attempts. `records`: those that count, by pair, on disk."""

    @property
    def records(self) -> Mapping[int, Mapping[str, Any]]: ...

    def attempt(self, pair: int) -> bool:
        """Try the position of a pair and store the outcome; False: the attempt is void, and nothing is stored."""

    def finish(self, pairs: int) -> Any:
        """Write what belongs to the first so many, which have ended."""


class _Order(Stored):
    key: str


class _Voided(Stored):
    folder: str


def run_trial(
    settings: TrialSettings, out: Path, connect: Callable[[Sequence[Path]], Sequence[Attempts]]
) -> int:
    """Run or resume a trial in ``out`` and return its exit code, as of `s2robot stats`. ``connect``: gets the folders of a and b
    and returns their attempts."""
    about = settings.model_dump(mode="json", exclude={"pairs"})
    known, order, key = out / "trial.settings.json", out / "order.json", secrets.token_hex(16)
    if resumes := order.exists():
        claim(known, about, _REMEDY)
        key = read(_Order, read_json(order), f"{order}: ").key
    swapped = _coin(key, "folders")
    folders = [out / str(1 + (i ^ swapped)) for i in range(2)]
    policies, done = connect(folders), 0
    if not resumes:  # what cannot be connected leaves no trial behind
        claim(known, about, _REMEDY)
        write_json(order, {"key": key})
    try:
        while done < settings.pairs:
            first = _coin(key, f"pair {done}")
            for turn, who in enumerate((first, 1 - first), start=1):
                while done not in policies[who].records:
                    print(f"\npair {done + 1} of at most {settings.pairs}, attempt {turn} of 2", flush=True)
                    if not policies[who].attempt(done):
                        with (out / "voids.jsonl").open("a", encoding="utf-8") as lines:
                            lines.write(json.dumps({"pair": done, "folder": folders[who].name}) + "\n")
            done += 1
            if _told_apart(_arms(settings, policies, done), settings):
                break
    except BaseException:
        where = f"hydra.run.dir={out} resumes, in the same order"
        print(f"{done} of at most {settings.pairs} pairs are done; {where}", flush=True)
        raise
    return _unblind(settings, out, folders, policies, done)


def _coin(key: str, about: str) -> int:
    return hashlib.sha256(f"{key} {about}".encode()).digest()[0] & 1


def _arms(settings: TrialSettings, policies: Sequence[Attempts], pairs: int) -> list[Arm]:
    found = []
    for name, policy in zip((settings.a, settings.b), policies, strict=True):
        records = [policy.records[pair] for pair in range(pairs)]
        success, stages = (np.array([[record[key] for record in records]]) for key in ("success", "stage"))
        found.append(Arm(name, success, tuple(range(settings.seed, settings.seed + pairs)), stages))
    return found


def _judging(settings: TrialSettings) -> StatsSettings:
    return StatsSettings(trials=("episodes.csv",), sequential=True, stages=settings.stages)


def _told_apart(arms: Sequence[Arm], settings: TrialSettings) -> bool:
    pair = compared(arms[0], arms[1], _judging(settings), LEVEL)
    return verdict({**pair, "p_holm": pair["p"]}) is True


def _unblind(
    settings: TrialSettings, out: Path, folders: Sequence[Path], policies: Sequence[Attempts], pairs: int
) -> int:
    arms, voids = _arms(settings, policies, pairs), list[str]()
    if (path := out / "voids.jsonl").exists():
        lines = path.read_text(encoding="utf-8").splitlines()
        voids = [read(_Voided, json.loads(line), f"{path}: ").folder for line in lines if line.endswith("}")]
    print("\nThe trial has ended.")
    for arm, policy, folder in zip(arms, policies, folders, strict=True):
        policy.finish(pairs)
        print(f"folder {folder.name}: {arm.label}, {pairs} attempts and {voids.count(folder.name)} void")
    rows = [
        (arm.label, *row)
        for arm in arms
        for row in zip(arm.positions or (), arm.outcomes[0].astype(int), arm.stages[0], strict=True)  # type: ignore[index]
    ]
    write_csv(out / "episodes.csv", COLUMNS, rows)
    return report(arms, _judging(settings), out)


# ---------------------------------------------------------------- by hand


class _ByHand:
    """Attempts of a policy that runs elsewhere, with the outcomes that a person types."""

    def __init__(
        self, name: str, folder: Path, settings: TrialSettings, places: Sequence[str], operator: TrialOperator
    ):
        self._name, self._seed, self._places, self._operator = name, settings.seed, places, operator
        self._ends = settings.stages
        self._journal = Journal(folder / "episodes.jsonl", {"policy": name, "seed": settings.seed})
        self.records = self._journal.records

    def attempt(self, pair: int) -> bool:
        print(f"{self._places[pair]}\nRun {self._name}.", flush=True)
        try:
            success = self._operator.success()
        except Void:
            return False
        reached = (self._ends[-1] if success else self._operator.stage()) if self._ends else ""
        unknown: dict[str, Any] = {"steps": 0, "time_to_success_s": None, "video": None}
        record = {"episode": pair, "seed": self._seed + pair, "success": success, "stage": reached, **unknown}
        self._journal.append(record, np.zeros((0, 1), np.float32))
        return True

    def finish(self, pairs: int) -> None:
        """Everything is on disk."""


def by_hand(
    settings: TrialSettings,
    world: CubePickConfig,
    folders: Sequence[Path],
    operator: TrialOperator | None = None,
) -> list[_ByHand]:
    """Return the attempts of a and b, with outcomes that ``operator`` types. UserError: fewer places than pairs."""
    seeds = range(settings.seed, settings.seed + settings.pairs)
    if settings.places is None:
        places = [Placing.draw(world, seed).instruction for seed in seeds]
    else:
        places = [line for line in read_text(settings.places).splitlines() if line.strip()]
    if len(places) < settings.pairs:
        raise UserError(
            f"pairs: expected at most the {len(places)} lines of {settings.places}, got {settings.pairs}"
        )
    operator = operator or TrialOperator(stages=settings.stages or ())
    names = zip((settings.a, settings.b), folders, strict=True)
    return [_ByHand(name, folder, settings, places, operator) for name, folder in names]
