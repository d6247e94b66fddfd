"""Success of policies over training seeds, on positions that no choice of settings used.

    python benchmarks/policies.py                       # every row; hours on two cores
    python benchmarks/policies.py default flow --seeds 0 1 2 --episodes 128

Panda needs its demonstrations first: `s2robot record robot=panda out=runs/policies/panda.zarr`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import arguments, fill, run, success

from s2robot.evaluation.records import read_records


@dataclass(frozen=True)
class Row:
    """Overrides of `s2robot train` (and of `evaluate`, where the world differs), and what they stand for."""

    train: str = ""
    world: str = ""  # overrides of both verbs
    robot: str = "xarm7"
    head: str = "regression"
    demos: int = 120
    dagger_rounds: int = 0
    base: str = ""  # with DAgger: the row whose policies it starts from


PANDA = {"world": "robot=panda demos.path=runs/policies/panda.zarr", "robot": "panda"}
HEADS = ("regression", "mip", "flow", "diffusion", "gmm", "act")
ONE = "policy.members=1 train.steps=3000"
ATTENTION = "policy.pooling.kind=attention"
EIGHT = (
    "policy=rpt policy.execute=8 policy.network.action_history=false policy.network.proprio_history=false "
    "policy.pooling.kind=spatial_softmax policy.action_target=cumulative policy.joint_loss=huber train.steps=8000"
)
ROWS = {
    "default": Row(),
    **{head: Row(f"{ONE} policy/head={head}", head=head) for head in HEADS},
    "40 demos": Row("demos.episodes=40", demos=40),
    "15 demos": Row("demos.episodes=15", demos=15),
    "15 demos, DAgger": Row("demos.episodes=15", demos=15, dagger_rounds=2, base="15 demos"),
    "15 demos, one scale": Row("demos.episodes=15 s2=single", demos=15),
    "15 demos, attention": Row(f"demos.episodes=15 {ATTENTION}", demos=15),
    "15 demos, attention, one scale": Row(f"demos.episodes=15 {ATTENTION} s2=single", demos=15),
    "DAgger": Row(dagger_rounds=1, base="default"),
    "transformer": Row("policy=transformer"),
    "rpt, eight of sixteen executed": Row(EIGHT),
    "rpt, four networks": Row(f"{EIGHT} policy.members=4"),
    "panda": Row(**PANDA),
    "panda, DAgger": Row(dagger_rounds=1, base="panda", **PANDA),
    "panda, DAgger, 4000 steps": Row("train.steps=4000", dagger_rounds=1, base="panda", **PANDA),
}  # fmt: skip


def main() -> None:
    parser = arguments(__doc__.splitlines()[0], "policies")
    args = parser.parse_args()
    work = args.work.resolve()

    def words(name: str, seed: int) -> list[str]:
        return [*ROWS[name].train.split(), *ROWS[name].world.split(), f"train.seed={seed}"]

    def folder_of(name: str, seed: int) -> Path:
        return work / name.replace(",", "") / f"seed{seed}"

    def trained(name: str, seed: int) -> Path:
        folder = folder_of(name, seed) / "train"
        run("train", words(name, seed), folder)
        return folder / "checkpoint"

    def one(name: str, seed: int) -> dict[str, Any]:
        row, folder = ROWS[name], folder_of(name, seed)
        positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=0"]
        if row.dagger_rounds:
            tried, fitted = folder / "dagger", folder / "dagger" / f"round_{row.dagger_rounds}"
            base = f"recording.checkpoint={trained(row.base, seed)}"
            run(
                "dagger",
                [*words(name, seed), base, f"recording.rounds={row.dagger_rounds}", *positions],
                tried,
            )
        else:
            tried, fitted = folder / "evaluate", folder / "train"
            run("evaluate", [f"checkpoint={trained(name, seed)}", *row.world.split(), *positions], tried)
        played = read_records(tried / "episodes.jsonl")
        spent = json.loads((tried / "summary.json").read_text())["timing"]["policy_s"]
        return {
            "seed": seed,
            "outcomes": [bool(record["success"]) for record in played],
            "train_seconds": sum(r["seconds"] for r in json.loads((fitted / "metrics.json").read_text())),
            "ms_per_action": 1e3 * spent / sum(record["steps"] for record in played),
        }

    def summarise(name: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
        row = ROWS[name]
        typed = " ".join(f"{row.train} {row.world} train.seed=<seed>".split())
        command = f"s2robot train {typed}"
        if row.dagger_rounds:
            command = f"s2robot dagger {typed} recording.checkpoint=<{row.base}> recording.rounds={row.dagger_rounds}"
        about = {key: getattr(row, key) for key in ("robot", "head", "demos", "dagger_rounds")}
        digits = {"train_seconds": 1, "ms_per_action": 2}
        costs = {key: round(float(np.mean([each[key] for each in seeds])), n) for key, n in digits.items()}
        return {"name": name, **about, **success(seeds, args.seed), **costs, "command": command}

    fill(parser, args, ROWS, one, summarise)


if __name__ == "__main__":
    main()
