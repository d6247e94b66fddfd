"""Success of policies over training seeds, on positions that no choice of settings used.

    python benchmarks/policies.py                       # every row; hours on two cores
    python benchmarks/policies.py default flow --seeds 0 1 2 --episodes 128

Panda, the 2.5 cm cube and two pickers, who prefer opposite faces, need their demonstrations first:

    s2robot record robot=panda out=runs/policies/panda.zarr
    s2robot record env.cube_size=0.025 out=runs/policies/cube25.zarr
    s2robot record picker.habit=either out=runs/policies/two_pickers.zarr
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
    cube_size: float = 0.04
    head: str = "regression"
    demos: int = 120
    dagger_rounds: int = 0
    base: str = ""  # with DAgger: the row whose policies it starts from


PANDA = {"world": "robot=panda demos.path=runs/policies/panda.zarr", "robot": "panda"}
SMALL: dict[str, Any] = {
    "world": "env.cube_size=0.025 demos.path=runs/policies/cube25.zarr",
    "cube_size": 0.025,
}
HEADS = ("regression", "mip", "flow", "diffusion", "gmm", "act")
ONE = "policy.members=1 train.steps=3000"
TWO = "demos.path=runs/policies/two_pickers.zarr"
ATTENTION = "policy.pooling.kind=attention"
EIGHT = (
    "policy=rpt policy.execute=8 policy.network.action_history=false policy.network.proprio_history=false "
    "policy.pooling.kind=spatial_softmax policy.action_target=cumulative policy.joint_loss=huber train.steps=8000"
)
ROWS = {
    "default": Row(),
    "one scale": Row("s2=single"),
    **{head: Row(f"{ONE} policy/head={head}", head=head) for head in HEADS},
    **{f"two pickers, {head}": Row(f"{ONE} policy/head={head}", TWO, head=head) for head in HEADS},
    **{f"DAgger, {head}": Row(f"{ONE} policy/head={head}", head=head, dagger_rounds=1, base=head) for head in HEADS},
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
    "2.5 cm cube": Row(**SMALL),
    "2.5 cm cube, one scale": Row("s2=single", **SMALL),
    "2.5 cm cube, attention": Row(ATTENTION, **SMALL),
    "2.5 cm cube, attention, DAgger": Row(ATTENTION, dagger_rounds=1, base="2.5 cm cube, attention", **SMALL),
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
            base, rounds = (
                f"recording.checkpoint={trained(row.base, seed)}",
                f"recording.rounds={row.dagger_rounds}",
            )
            run("dagger", [*words(name, seed), base, rounds, *positions], tried)
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
        about = {key: getattr(row, key) for key in ("robot", "cube_size", "head", "demos", "dagger_rounds")}
        means = {
            key: float(np.mean([each[key] for each in seeds])) for key in ("train_seconds", "ms_per_action")
        }
        costs = {key: round(mean, 1 if key == "train_seconds" else 2) for key, mean in means.items()}
        return {"name": name, **about, **success(seeds, args.seed), **costs, "command": command}

    fill(parser, args, ROWS, one, summarise)


if __name__ == "__main__":
    main()
