"""Recompute the tables of success in README.md and docs/ from the outcome of every episode in docs/results/.

    python benchmarks/verify.py                   # names every figure that differs, exit code 1
    python benchmarks/verify.py --write           # rewrites the tables and the picture
    python benchmarks/verify.py --add runs/scales/cube4-15-expert     # a finished comparison, first

A comparison is one file: the positions, and for each arm its command, commit, versions, and for each training seed one digit a
position, 1 for a success. A page holds a table between `<!-- <its name> -->` and `<!-- end -->`.
"""

import argparse
import csv
import difflib
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from s2robot.comparison.paired import Difference, difference, holm, success_interval
from s2robot.comparison.trials import read_arms
from s2robot.core.files import read_json, write_json
from s2robot.evaluation.records import read_records
from s2robot.evaluation.stress import STRENGTHS
from s2robot.reporting import plots

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks are no installed package

from benchmarks import faults  # noqa: E402

RESULTS = ROOT / "docs" / "results"
PAGES = (
    "README.md",
    *(f"docs/{name}.md" for name in ("coming-from", "faults", "results", "s2")),
    *(f"docs/results/{name}/README.md" for name in ("outside", "s2", "table10")),
)
ABOUT = ("name", "label", "encoder", "scales", "overrides", "parameters", "gflops_per_frame", "ms_per_action")
# primary comparisons of docs/results/protocol.md
PRIMARY = {"s2": [("s2", "two")]} | dict.fromkeys(("size", "distance"), [("two", "one"), ("s2", "two")])
ARMS = {"one": "scale 1", "two": "scale 2 alone", "s2": "scales 1 and 2"}
SHORT = {"one": "1", "two": "2", "two-averaged": "2, small grid", "s2": "1+2", "s2-three": "1+2+3"}
SHORT |= {"s2-upsampled": "1+2, upsampled", "three-averaged": "3, small grid"}
SHORT |= {"large": "larger at 1", "large-two": "larger at 2"}
FEW = "-15"  # in the names of worlds with 15 demonstrations: their gains over scale 1 stand with the other differences
STRESSED = ("softmax", "attention")  # of docs/results/stress: the others are compared with the first there
AUGMENTED = 3  # the first axes there, which one arm was trained on
WORLDS = {"cube4": "4 cm cube", "cube25": "2.5 cm cube"}  # run with several numbers of demonstrations
DEMOS: dict[float, str] = {number: str(number) for number in (15, 30, 60, 120)}
PROBED_SCALES = ("1", "2", "1+2")  # whose scores are shown
# task of a probe: its metric, the sign of a gain, the name of 100 x the metric
PROBED = {
    "classify": ("accuracy", 1, "accuracy, %"),
    "segment": ("miou", 1, "mIoU, %"),
    "depth": ("rmse_m", -1, "RMSE, cm"),
}
Outcomes = Mapping[str, np.ndarray]  # arm or row -> bool (training seeds, positions)


def comparison(name: str) -> tuple[dict[str, Any], Outcomes]:
    """Return what docs/results/<name>.json says, and its outcomes by arm."""
    facts = read_json(RESULTS / f"{name}.json")
    return facts, {arm.label: arm.outcomes for arm in read_arms(str(RESULTS / f"{name}.json"))}


def rows_of(name: str) -> dict[str, np.ndarray]:
    """Return the outcomes of docs/results/<name>/summary.json by row, from the positions that failed."""
    found = {}
    for row in read_json(RESULTS / name / "summary.json")["rows"]:
        positions = np.arange(row["positions"][0], row["positions"][1] + 1)
        found[row["name"]] = np.array([~np.isin(positions, seed["failed"]) for seed in row["seeds"]])
    return found


def commit_of(folder: Path) -> str:
    return subprocess.check_output(["git", "-C", folder, "rev-parse", "HEAD"], text=True).strip()


def add(folder: Path, into: str) -> None:
    """Store a finished comparison as docs/results/<into>/<folder's name>.json, beside the other arms of that file."""
    facts, stored = read_json(folder / "compare.json"), RESULTS / into / f"{folder.name}.json"
    positions = facts["positions"]
    about = read_json(stored) if stored.exists() else {"positions": positions, "pairs": [], "arms": []}
    assert about["positions"] == positions, f"{stored}: other positions"
    about["pairs"] += [p for p in ([p["a"], p["b"]] for p in facts["pairs"]) if p not in about["pairs"]]
    origin = {key: facts[key] for key in ("command", "versions")} | {"commit": commit_of(folder)}
    arms = {arm["name"]: arm for arm in about["arms"]}
    for arm in facts["arms"]:
        outcomes = {}
        for run in arm["seeds"]:
            tried = read_records(folder / run["run"] / "episodes.jsonl", positions["episodes"], run)
            tried = sorted(tried, key=lambda record: record["seed"])
            outcomes[str(run["seed"])] = "".join(str(int(record["success"])) for record in tried)
        tokens = read_json(folder / run["run"] / "summary.json")["policy"]["tokens"]
        own = {key: arm[key] for key in ABOUT} | origin
        arms[arm["name"]] = own | {"tokens_per_frame": tokens, "outcomes": outcomes}
    write_json(stored, about | {"arms": list(arms.values())})


def percent(outcomes: np.ndarray) -> str:
    low, high, _ = success_interval(outcomes)
    return f"{100 * outcomes.mean():.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def points(found: Difference, p: float = 1) -> str:
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.difference:+.1f} [{low:+.1f}, {high:+.1f}]; {p_text(p)}".removesuffix("; 1")


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def table(*lines: Sequence[Any]) -> str:
    head, *rows = lines
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in (head, ["---"] * len(head), *rows))


def counts(outcomes: np.ndarray) -> str:
    return ", ".join(f"{successes:g}" for successes in outcomes.sum(1))


def arms_table(of: str) -> str:
    """Return the arms of comparisons that ran the same ones, with the costs of the first unless `of` ends in "success"."""
    names, brief = of.removesuffix(" success").split(), of.endswith(" success")
    found = [comparison(name) for name in names]
    costs = [] if brief else ["GFLOPs a frame", "tokens", "ms an action"]
    rows = [["arm", *costs, "success", *(f"success, {name.rpartition('-')[2]}" for name in names[1:])]]
    for arm in found[0][0]["arms"]:
        tokens, ms = arm.get("tokens_per_frame", ""), f"{arm['ms_per_action']:.3g}"
        cost = [] if brief else [arm["gflops_per_frame"], tokens, ms]
        rows.append([arm["label"], *cost, *(percent(outcomes[arm["name"]]) for _, outcomes in found)])
    return table(*rows)


def pairs_table(of: str) -> str:
    """Return the differences of comparisons, the primary ones of the protocol aside, with Holm's correction within each."""
    names, columns = of.split(), dict[str, dict[str, str]]()  # label -> comparison -> cell
    for name in names:
        facts, outcomes = comparison(name)
        labels = {arm["name"]: arm["label"] for arm in facts["arms"]} | (SHORT if "two" in outcomes else {})
        pairs = [pair for pair in facts["pairs"] if tuple(pair) not in PRIMARY.get(name.split("/")[0], ())]
        found = [difference(outcomes[a], outcomes[b]) for a, b in pairs]
        for (a, b), each, p in zip(pairs, found, holm([each.p for each in found]), strict=True):
            if b != "one" or FEW in name:
                columns.setdefault(f"{labels[a]} − {labels[b]}", {})[name] = points(each, p)
    rows = ([Path(name).name, *(each.get(name, "") for each in columns.values())] for name in names)
    return table(["points [95 %]; p, Holm", *columns], *rows)


def studies(folder: str = "s2") -> list[str]:
    names = [f"{folder}/{file.stem}" for file in (RESULTS / folder).glob("*.json")]
    return sorted(names, key=lambda name: [part.zfill(3) for part in name.split("-")])


def primary_table(of: str) -> str:
    """Return the primary comparisons of a folder, with Holm's correction over all; of `<folder> <arm> <arm>` that difference too,
    corrected over the worlds with more than 15 demonstrations: the others have tables of their own."""
    folder, *arms = of.split()
    outcomes = {name: comparison(name)[1] for name in studies(folder)}
    rows = {name: [Path(name).name] for name in outcomes}
    families: list[Any] = [(PRIMARY[folder], rows)]
    families += [([arms], [name for name in rows if FEW not in name])] if arms else []
    for pairs, names in families:
        tests = [(name, difference(outcomes[name][a], outcomes[name][b])) for name in names for a, b in pairs]
        for (name, each), p in zip(tests, holm([each.p for _, each in tests]), strict=True):
            rows[name].append(points(each, p))
    heads = (f"{ARMS[a]} − {ARMS[b]}, points [95 %]; p, Holm" for pairs, _ in families for a, b in pairs)
    return table(["world", *heads], *rows.values())


def success_table(name: str) -> str:
    rows = [[row, counts(x), percent(x)] for row, x in rows_of(name).items()]
    return table(["row", "successes by training seed", "success [95 %]"], *rows)


def stressed(folder: str) -> dict[str, np.ndarray]:
    """Return success by axis (training seeds, axes, positions), the mean over strengths, from <arm>-<seed>.csv of each arm."""
    found: dict[str, list[np.ndarray]] = {}
    for file in sorted((RESULTS / folder).glob("*.csv")):
        rows = list(csv.DictReader(file.read_text().splitlines()))
        axes = dict.fromkeys(row["disturbance"] for row in rows if row["disturbance"])
        outcomes = [[int(row["success"]) for row in rows if row["disturbance"] == axis] for axis in axes]
        cells = np.array(outcomes).reshape(len(axes), STRENGTHS, -1)
        found.setdefault(file.stem.rpartition("-")[0], []).append(cells.mean(1))
    return {arm: np.array(seeds) for arm, seeds in found.items()}


def stress_table(folder: str) -> str:
    """Return success under disturbances, differences from STRESSED, success without the AUGMENTED axes, and undisturbed."""
    arms, plain = stressed(folder), rows_of(folder)
    base = next(arm for arm in STRESSED if arm in arms)
    means, trials = {arm: x.mean(1) for arm, x in arms.items()}, STRENGTHS * arms[base].shape[1]
    found = {arm: difference(x, means[base], trials=trials) for arm, x in means.items() if arm != base}
    p = dict(zip(found, holm([each.p for each in found.values()]), strict=True))
    rows = []
    for arm, x in arms.items():
        each = [points(found[arm]), p_text(p[arm])] if arm in found else ["", ""]
        shares = [f"{100 * part.mean():.1f} %" for part in (x, x[:, AUGMENTED:])]
        rows.append([arm, shares[0], *each, shares[1], counts(plain[arm]) if arm in plain else ""])
    heads = [f"− {base}, points [95 %]", "p, Holm", "seven axes", "undisturbed, of 128"]
    return table(["arm", "ten axes", *heads], *rows)


def fault_runs(arm: str) -> list[dict[str, Any]]:
    """Return what benchmarks/faults.py stored for an arm, or for `all`."""
    files = (RESULTS / "faults").glob("*.jsonl")
    return [fault for file in files if arm in (file.stem, "all") for fault in faults.read(file)]


def faults_table(arm: str) -> str:
    found, columns = fault_runs(arm), ("fault", *faults.TIMES, "afterwards")
    runs = [run for fault in found for run in fault["outcomes"] if not run["problem"]]
    designed = f"{sum(run['as_designed'] for run in runs)} of {len(runs)} runs as designed"
    rows = [[faults.row(fault)[name] for name in columns] for fault in found]
    return f"**{unsafe_commands(arm)} unsafe commands; {designed}.**\n\n{table(columns, *rows)}"


def unsafe_commands(arm: str) -> str:
    return str(sum(run["unsafe"] for fault in fault_runs(arm) for run in fault["outcomes"]))


def measured(folder: str) -> dict[str, np.ndarray]:
    """Return success and measure by name (2, training seeds, positions) of docs/results/<folder>/<name>[_seed_<n>].jsonl."""
    found: dict[str, list] = {}
    for file in sorted((RESULTS / folder).glob("*.jsonl")):
        own = [(e["success"], e["progress"]) for e in map(json.loads, file.read_text().splitlines())]
        found.setdefault(file.stem.partition("_seed_")[0], []).append(own)
    return {name: np.moveaxis(np.array(x, float), 2, 0) for name, x in found.items()}


def episodes_table(folder: str) -> str:
    found = measured(folder).items()
    rows = [[name, counts(done), percent(done), f"{measure.mean():.3f}"] for name, (done, measure) in found]
    return table(["outcomes", "successes by training seed", "success [95 %]", "mean of the measure"], *rows)


def measure_table(of: str) -> str:
    """Return success and measure of `<folder> <arm> …`, each arm's measure minus that of the row above, with Holm's correction."""
    folder, *arms = of.split()
    x = measured(folder)
    found = [difference(x[b][1], x[a][1]) for a, b in pairwise(arms)]
    gaps = ["", *map(points, found, holm([each.p for each in found]))]
    rows = ([ARMS[a], counts(x[a][0]), f"{x[a][1].mean():.3f}", d] for a, d in zip(arms, gaps, strict=True))
    return table(["arm", "successes", "measure", "− the row above, hundredths [95 %]; p, Holm"], *rows)


def probe_table(folder: str) -> str:
    """Return the scores of docs/results/<folder>/scaling.csv by set of scales, and what scales 1 and 2 gain on either alone.

    p strict: of a gain on both, the larger of their two.
    """
    found: dict[tuple[str, ...], tuple[Difference, float]] = {}
    for row in csv.DictReader((RESULTS / folder / "scaling.csv").read_text().splitlines()):
        (model, scales), (other, _, minus) = row["arm"].split(), row["minus"].partition(" ")
        metric, sign, title = PROBED[row["task"]]
        if row["metric"] == metric and other in ("", model):
            value, low, high, p = (float(row[key] or "nan") for key in ("value", "low", "high", "p"))
            gain = Difference(value, low, high, p, "")
            found[title, model, scales, minus] = gain, p if sign * value > 0 else 1.0
    cells, pairs = dict.fromkeys(key[:2] for key in found), (("1+2", "2"), ("1+2", "1"), ("2+3", "2"))
    gains = [[found[(*cell, *pair)] for pair in pairs] for cell in cells]
    plain = holm([two[0].p for two, *_ in gains])
    strict = holm([max(two[1], one[1]) for two, one, _ in gains])
    rows = [
        [*cell, *(f"{100 * found[(*cell, each, '')][0].difference:.1f}" for each in PROBED_SCALES),
         *(points(each) for each, _ in gains[i]), p_text(plain[i]), p_text(strict[i])]
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    gaps = [f"{a} − {b}" for a, b in pairs]
    return table(["score", "model", *PROBED_SCALES, *gaps, "p, Holm", "p strict, Holm"], *rows)


def block(name: str) -> str:
    """Return the table of a name: `arms s2/cube4-15-expert`, `arms … …`, `arms … success`, `pairs … …`, `primary s2 two one`, `rows policies`,
    `stress stress`, `faults xarm7`, `episodes outside`, `measure pusht one two s2`, `probe probing`; or a figure: `success <source> <arm or row>`,
    `difference <source> <arm> <arm>`, `unsafe <arm>`, `robust stress/augment both`, on the axes that are not augmented."""
    kind, _, of = name.partition(" ")
    if kind == "robust":
        return f"{100 * stressed(of.split()[0])[of.split()[1]][:, AUGMENTED:].mean():.1f} %"
    if kind == "difference":
        source, a, b = of.split()
        return points(difference(comparison(source)[1][a], comparison(source)[1][b]))
    if kind == "success":
        source, _, row = of.partition(" ")
        return percent((rows_of(source) if (RESULTS / source).is_dir() else comparison(source)[1])[row])
    makers = {
        "arms": arms_table,
        "pairs": pairs_table,
        "rows": success_table,
        "stress": stress_table,
        "faults": faults_table,
        "unsafe": unsafe_commands,
        "episodes": episodes_table,
        "measure": measure_table,
        "probe": probe_table,
        "primary": primary_table,
    }
    return makers[kind](of)


def renew(text: str) -> str:
    """Return a page with every table and every single figure written again."""
    wide = re.compile(r"(<!-- (?!end)(\w[^>]*) -->\n).*?(<!-- end -->)", re.DOTALL)
    text = wide.sub(lambda found: f"{found[1]}\n{block(found[2])}\n\n{found[3]}", text)
    single = re.compile(r"[^|]*(<!-- ((?:success|difference|unsafe|robust) [^>]*) -->)")
    return single.sub(lambda found: f" {block(found[2])} {found[1]}", text)


def differing() -> Iterator[str]:
    for page in PAGES:
        old = (ROOT / page).read_text(encoding="utf-8")
        for line in difflib.ndiff(old.splitlines(), renew(old).splitlines()):
            if line[0] in "-+":  # is, should be
                yield f"{page}: {line}"


def picture(file: Path) -> None:
    """Draw success against the cost of a frame where most arms were run, and against the number of demonstrations."""
    curves: dict[str, dict[str, list[tuple[float, ...]]]] = {}  # panel -> arm -> x, success, low, high
    for name in studies():
        facts, outcomes = comparison(name)
        world, demos, kind = Path(name).name.split("-")
        for arm in facts["arms"]:
            own = outcomes[arm["name"]]
            shown = tuple(100 * value for value in (own.mean(), *success_interval(own)[:2]))
            panel = f"{WORLDS.get(world, world.capitalize())}, {kind}"
            places = [(f"{panel}, {demos} demos", arm["gflops_per_frame"])] * (len(outcomes) > 4)
            places += [(panel, int(demos))] * (arm["name"] in ARMS and world in WORLDS)
            for title, x in places:
                curves.setdefault(title, {}).setdefault(arm["label"], []).append((x, *shown))
    panels, labels = [], list(dict.fromkeys(label for arms in curves.values() for label in arms))
    for title, arms in sorted(curves.items(), key=lambda item: ("demos" in item[0], item[0])):
        lines = []
        for label, points in arms.items():
            colour, marker, *_ = plots.series_style(labels.index(label))
            x, y, low, high = zip(*sorted(points), strict=True)
            style = {"marker": marker, "ms": 6, "ls": "none" if len(x) == 1 else "-"}
            lines.append(plots.Line(x, y, label, colour, low, high, style))
        xlabel, ticks = ("GFLOPs a frame", {}) if "demos" in title else ("demonstrations", DEMOS)
        panels.append(plots.Panel(title, lines, xlabel, "success (%)", "x", ticks, ylim=(0, 104)))
    plots.curves(panels, 3, (3.8, 2.9)).savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write tables and the picture")
    parser.add_argument("--add", type=Path, help="run directory of a finished comparison")
    parser.add_argument("--into", default="s2", help="folder of docs/results for it (default s2)")
    args = parser.parse_args()
    if args.add:
        add(args.add, args.into)
    if args.write:
        for page in PAGES:
            (ROOT / page).write_text(renew((ROOT / page).read_text(encoding="utf-8")), encoding="utf-8")
        picture(RESULTS / "s2" / "success.png")
    found = list(differing())
    print("\n".join(found) or f"the tables of {len(PAGES)} pages follow from their episodes")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
