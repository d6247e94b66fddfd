"""The table of policies: success over training seeds on positions that played no part in any choice.

    python benchmarks/policies.py                       # every row; hours on two cores
    python benchmarks/policies.py default flow --seeds 0 1 2 --episodes 128

Each row is a setting of `s2robot train`, trained with every seed and evaluated on the same positions; the runs lie
in `--work`, finished ones are not run again, and an interrupted one goes on. The result, with intervals over training
seeds and positions and the two commands of each row, goes into docs/results/policies/summary.json: rows that are
there already and are not asked for stay. The rows of Panda, of the 2.5 cm cube and of two pickers, who prefer opposite
faces of the cube, need their demos first:

    s2robot record robot=panda out=runs/policies/panda.zarr
    s2robot record env.cube_size=0.025 out=runs/policies/cube25.zarr
    s2robot record picker.habit=either out=runs/policies/two_pickers.zarr
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rows import ROOT, against, keep, records, run, success

SUMMARY = ROOT / "docs" / "results" / "policies" / "summary.json"


@dataclass(frozen=True)
class Row:
    """What is typed for `s2robot train` (and for `evaluate`, where the world differs), and what it stands for."""

    train: str = ""
    world: str = ""  # settings of both verbs
    robot: str = "xarm7"
    cube_size: float = 0.04
    head: str = "regression"
    demos: int = 120
    dagger_rounds: int = 0
    begins: str = ""  # with DAgger: the row whose policies it begins with


PANDA = "robot=panda demos.path=runs/policies/panda.zarr"
SMALL = "env.cube_size=0.025 demos.path=runs/policies/cube25.zarr"
HEADS = ("regression", "mip", "flow", "diffusion", "gmm", "act")
ONE = "policy.members=1 train.steps=3000"
TWO = "demos.path=runs/policies/two_pickers.zarr"
LARGE = "encoder=mvp-small s2=single"
EIGHT = (
    "policy=rpt policy.execute=8 policy.network.action_history=false policy.network.proprio_history=false "
    "policy.pooling.kind=spatial_softmax policy.action_target=cumulative policy.joint_loss=huber train.steps=8000"
)
ROWS = {
    "default": Row(),
    "one scale": Row("s2=single"),
    "one network, two of eight executed": Row(f"{ONE} policy.execute=2"),
    **{head: Row(f"{ONE} policy/head={head}", head=head) for head in HEADS},
    **{f"two pickers, {head}": Row(f"{ONE} policy/head={head}", TWO, head=head) for head in HEADS},
    **{
        f"DAgger, {head}": Row(f"{ONE} policy/head={head}", head=head, dagger_rounds=1, begins=head)
        for head in HEADS
    },
    "diffusion, 10000 steps": Row(
        "policy.members=1 train.steps=10000 policy/head=diffusion", head="diffusion"
    ),
    "60 demos": Row("demos.episodes=60", demos=60),
    "40 demos": Row("demos.episodes=40", demos=40),
    "15 demos": Row("demos.episodes=15", demos=15),
    **{
        f"{demos} demos, DAgger": Row(
            f"demos.episodes={demos}", demos=demos, dagger_rounds=2, begins=f"{demos} demos"
        )
        for demos in (40, 15)
    },
    # What 15 demos leave to gain, and whether more pooling, more eyes or a trained encoder gain it.
    **{
        f"15 demos, {what}": Row(f"demos.episodes=15 {typed}", demos=15)
        for what, typed in {
            "attention": "policy.pooling.kind=attention",
            "attention, one scale": "policy.pooling.kind=attention s2=single",
            "one scale": "s2=single",
            "one scale, two blocks": "s2=single train.tune.blocks=2",
            "one scale, LoRA": "s2=single train.tune.blocks=2 train.tune.lora=8",
        }.items()
    },
    "attention": Row("policy.pooling.kind=attention"),
    "40 demos, attention": Row("demos.episodes=40 policy.pooling.kind=attention", demos=40),
    "DAgger": Row(dagger_rounds=1, begins="default"),
    "transformer": Row("policy=transformer"),
    "transformer, 2000 steps": Row("policy=transformer train.steps=2000"),
    "transformer, one network": Row("policy=transformer policy.members=1"),
    "transformer, one network, past states, 2000 steps": Row(
        "policy=transformer policy.members=1 policy.network.proprio_history=true train.steps=2000"
    ),
    "rpt": Row("policy=rpt"),
    "rpt, 8000 steps": Row("policy=rpt train.steps=8000"),
    "rpt, 8000 steps, eight executed": Row("policy=rpt policy.execute=8 train.steps=8000"),
    "rpt, no past actions": Row("policy=rpt policy.network.action_history=false train.steps=8000"),
    "rpt, keypoints": Row(
        "policy=rpt policy.network.action_history=false policy.pooling.kind=spatial_softmax train.steps=4000"
    ),
    "rpt, keypoints, no past states": Row(
        "policy=rpt policy.network.action_history=false policy.network.proprio_history=false "
        "policy.pooling.kind=spatial_softmax train.steps=8000"
    ),
    "rpt, eight of sixteen executed": Row(EIGHT),
    "rpt, four networks": Row(f"{EIGHT} policy.members=4"),
    "panda": Row("", PANDA, robot="panda"),
    "panda, DAgger": Row("", PANDA, robot="panda", dagger_rounds=1, begins="panda"),
    "panda, DAgger, 4000 steps": Row(
        "train.steps=4000", PANDA, robot="panda", dagger_rounds=1, begins="panda"
    ),
    "panda, attention": Row("policy.pooling.kind=attention", PANDA, robot="panda"),
    "panda, attention, DAgger": Row(
        "policy.pooling.kind=attention", PANDA, robot="panda", dagger_rounds=1, begins="panda, attention"
    ),
    "2.5 cm cube": Row("", SMALL, cube_size=0.025),
    "2.5 cm cube, one scale": Row("s2=single", SMALL, cube_size=0.025),
    "2.5 cm cube, large": Row(LARGE, SMALL, cube_size=0.025),
    "2.5 cm cube, attention": Row("policy.pooling.kind=attention", SMALL, cube_size=0.025),
    "2.5 cm cube, DAgger": Row("", SMALL, cube_size=0.025, dagger_rounds=1, begins="2.5 cm cube"),
    "2.5 cm cube, attention, DAgger": Row(
        "policy.pooling.kind=attention",
        SMALL,
        cube_size=0.025,
        dagger_rounds=1,
        begins="2.5 cm cube, attention",
    ),
}


def trained(name: str, row: Row, seed: int, args: argparse.Namespace) -> Path:
    """The checkpoint of a row without DAgger."""
    folder = args.work / name.replace(",", "") / f"seed{seed}" / "train"
    run("train", [*row.train.split(), *row.world.split(), f"train.seed={seed}"], folder)
    return folder / "checkpoint"


def one(name: str, row: Row, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate a row with one training seed."""
    folder = args.work / name.replace(",", "") / f"seed{seed}"
    train = [*row.train.split(), *row.world.split(), f"train.seed={seed}"]
    positions = [f"evaluate.episodes={args.episodes}", f"evaluate.seed={args.seed}", "evaluate.videos=0"]
    if row.dagger_rounds:
        first = trained(row.begins, ROWS[row.begins], seed, args)
        begin = [f"recording.checkpoint={first}", f"recording.rounds={row.dagger_rounds}"]
        run("dagger", [*train, *begin, *positions], folder / "dagger")
        tried, fitted = folder / "dagger", folder / "dagger" / f"round_{row.dagger_rounds}"
    else:
        checkpoint = f"checkpoint={trained(name, row, seed, args)}"
        run("evaluate", [checkpoint, *row.world.split(), *positions], folder / "evaluate")
        tried, fitted = folder / "evaluate", folder / "train"
    played = records(tried)
    summary = json.loads((tried / "summary.json").read_text())
    metrics = json.loads((fitted / "metrics.json").read_text())
    actions = sum(record["steps"] for record in played)
    return {
        "seed": seed,
        "outcomes": [bool(record["success"]) for record in played],
        "train_seconds": sum(line["seconds"] for line in metrics),
        "ms_per_action": 1e3 * summary["timing"]["policy_s"] / actions,
    }


def command(row: Row) -> str:
    """What to type for one policy of a row."""
    typed = " ".join(f"{row.train} {row.world} train.seed=<seed>".split())
    if not row.dagger_rounds:
        return f"s2robot train {typed}"
    begin = f"recording.checkpoint=<{row.begins}> recording.rounds={row.dagger_rounds}"
    return f"s2robot dagger {typed} {begin}"


def summarise(name: str, row: Row, seeds: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    return {
        "name": name,
        **{key: getattr(row, key) for key in ("robot", "cube_size", "head", "demos", "dagger_rounds")},
        **success(seeds, args.seed),
        "train_seconds": round(float(np.mean([each["train_seconds"] for each in seeds])), 1),
        "ms_per_action": round(float(np.mean([each["ms_per_action"] for each in seeds])), 2),
        "command": command(row),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help=f"rows of the table (default: all): {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="training seeds")
    parser.add_argument("--episodes", type=int, default=256, help="positions (default 256)")
    parser.add_argument("--seed", type=int, default=60_000, help="of the first position (default 60000)")
    parser.add_argument(
        "--against", help="a row whose success is taken from that of the others, position by position"
    )
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "policies", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=SUMMARY, help="the summary")
    args = parser.parse_args()
    args.work = args.work.resolve()
    if unknown := [name for name in [*args.rows, *filter(None, [args.against])] if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]}, expected some of {', '.join(ROWS)}")
    for name in args.rows or ROWS:
        seeds = [one(name, ROWS[name], seed, args) for seed in args.seeds]
        keep(args.out, "rows", summarise(name, ROWS[name], seeds, args))
        if args.against not in (None, name):
            base = [one(args.against, ROWS[args.against], seed, args) for seed in args.seeds]
            keep(args.out, "differences", against(name, seeds, args.against, base))


if __name__ == "__main__":
    main()
