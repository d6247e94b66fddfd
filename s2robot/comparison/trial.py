"""`s2robot trial`: a blinded trial of two policies, in pairs of attempts from the same position, until they can be told apart.

    s2robot trial a=runs/one b=runs/other --live robot.ip=192.168.1.200 hydra.run.dir=runs/mine   # repeat to resume
    s2robot trial a=act b=diffusion by_hand=true places=places.txt         # policies that run elsewhere; not blinded

The run directory holds the attempts in folders `1` and `2`; `order.json` decides which policy uses which folder. The end of
the trial writes episodes.csv, and stats.json as `s2robot stats <folder> sequential=true` would.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from s2robot.comparison.statistics import LEVEL, verdict
from s2robot.comparison.trials import Arm, StatsSettings, compare_arms, report
from s2robot.core.files import claim, read_json, read_text, write_csv, write_json
from s2robot.core.settings import Different, Settings, from_yaml, read

_REMEDY = "choose another hydra.run.dir"


class TrialSettings(Settings, file="trial"):
    a: str = from_yaml(min_length=1)
    b: str = from_yaml(min_length=1)
    live: bool = from_yaml()
    pairs: int = from_yaml(ge=1)
    seed: int = from_yaml(ge=0)
    stages: Annotated[tuple[str, ...], Different, Field(min_length=2)] | None = from_yaml()
    videos: bool = from_yaml()
    video_size: int = from_yaml(ge=16)
    judge: Literal["person", "scene"] = from_yaml()
    by_hand: bool = from_yaml()
    places: Path | None = from_yaml()

    def rules(self) -> Iterator[tuple[Any, ...]]:
        yield "b", self.a != self.b, "a policy other than a"
        yield "places", self.places is None or self.by_hand, "null without by_hand=true", str(self.places)


def run_trial(settings: TrialSettings, out: Path, connect: Callable[[Sequence[Path]], Sequence[Any]]) -> int:
    """Run or resume a trial in ``out`` and return the exit code of `s2robot stats`.

    connect: maps the folders of a and b to their runners. `attempt(pair)` stores an outcome in the runner's `journal`, unless
    the attempt is void; `finish(pairs)` is called after the last pair.
    """
    about = {"a": settings.a, "b": settings.b, "seed": settings.seed, "stages": settings.stages}
    known, order, key = out / "trial.settings.json", out / "order.json", secrets.token_hex(16)
    if resumes := order.exists():
        claim(known, about, _REMEDY)
        key = read(dict[str, str], read_json(order), f"{order}: ").get("key", "")
    folders = [out / str(1 + (i ^ _coin(key, "folders"))) for i in range(2)]
    policies, done = connect(folders), 0
    if not resumes:  # a failed connection leaves no trial behind
        claim(known, about, _REMEDY)
        write_json(order, {"key": key})
    judging = StatsSettings(trials=("episodes.csv",), sequential=True, stages=settings.stages)
    try:
        while done < settings.pairs:
            first = _coin(key, f"pair {done}")
            for turn, index in enumerate((first, 1 - first), start=1):
                while done not in policies[index].journal.records:
                    print(f"\npair {done + 1} of at most {settings.pairs}, attempt {turn} of 2", flush=True)
                    # also of one that is killed
                    with (out / "attempts.jsonl").open("a", encoding="utf-8") as lines:
                        lines.write(json.dumps({"pair": done, "folder": folders[index].name}) + "\n")
                    policies[index].attempt(done)
            done += 1
            a, b = _arms(settings, policies, done)
            pair = compare_arms(a, b, judging, LEVEL)
            if verdict(pair | {"p_holm": pair["p"]}):
                break
    except BaseException:
        hint = f"hydra.run.dir={out} resumes, in the same order"
        print(f"{done} of at most {settings.pairs} pairs are done; {hint}", flush=True)
        raise
    return _unblind(_arms(settings, policies, done), judging, folders, policies)


def _coin(key: str, about: str) -> int:
    return hashlib.sha256(f"{key} {about}".encode()).digest()[0] & 1


def _arms(settings: TrialSettings, policies: Sequence[Any], pairs: int) -> list[Arm]:
    positions, found = tuple(range(settings.seed, settings.seed + pairs)), []
    for name, policy in zip((settings.a, settings.b), policies, strict=True):
        records = [policy.journal.records[pair] for pair in range(pairs)]
        success, stages = (np.array([[record[key] for record in records]]) for key in ("success", "stage"))
        found.append(Arm(name, success, positions, stages))
    return found


def _unblind(arms: list[Arm], judging: StatsSettings, folders: list[Path], policies: Sequence[Any]) -> int:
    out, rows = folders[0].parent, list[tuple[Any, ...]]()
    attempts = read_text(out / "attempts.jsonl")
    print("\nThe trial has ended.")
    for arm, policy, folder in zip(arms, policies, folders, strict=True):
        pairs, void = arm.outcomes.size, attempts.count(json.dumps(folder.name)) - arm.outcomes.size
        policy.finish(pairs)
        print(f"folder {folder.name}: {arm.label}, {pairs} attempts and {void} void")
        records = (policy.journal.records[pair] for pair in range(pairs))
        rows += [(arm.label, r["seed"], int(r["success"]), r["stage"]) for r in records]
    write_csv(out / "episodes.csv", ("arm", "position", "success", "stage"), rows)
    return report(arms, judging, out)
