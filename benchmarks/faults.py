"""Inject faults into a running bridge; tabulate which commands reached the emulated arm and when it stopped.

    python benchmarks/faults.py                               # every fault 20 times
    python benchmarks/faults.py --faults nan,hang --repeat 3
    python benchmarks/faults.py --out runs.jsonl              # a line per fault, as soon as it is measured
    <python of LeRobot's environment> benchmarks/faults.py --arm so101

Each run is an episode with the vendor's SDK, the emulated box, the live control loop with its default limits, a supervisor,
cameras and a recorder (an SO-101: LeRobot, emulated servos, loop and supervisor); the fault strikes while the arm moves.
docs/faults.md explains the columns. A run that a busy machine spoilt is repeated. Exit code 1 if anything was unsafe or not
as designed.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"xarm7": "benchmarks.fault_cases", "so101": "benchmarks.fault_so101"}  # each has CASES and benches
TRIES = 4  # of a run that load has spoilt
TIMES = ("last motion command, ms", "stop command, ms", "standstill, ms")
COLUMNS = ("fault", "unsafe", *TIMES, "afterwards", "as designed")


def attempt(bench: Any, case: Any) -> list[Any]:
    """Outcomes of a run: the last one counts, those before it were spoilt by load."""
    outcomes = [bench.run(case)]
    while not outcomes[-1].valid and len(outcomes) < TRIES:
        print(f"  {case.name}: {outcomes[-1].problem}; repeated", file=sys.stderr)
        outcomes.append(bench.run(case))
    return outcomes


def stored(case: Any, outcomes: list) -> dict[str, Any]:
    """Return what is stored about a fault: the expected reaction, and the outcome of every run."""
    design = {"fault": case.what, "name": case.name, "designed": case.designed, "rests": case.rests}
    return design | {"outcomes": [asdict(outcome) for outcome in outcomes]}


def good(fault: Mapping[str, Any]) -> bool:
    """Whether every run that counts was as designed, and all were safe and kept the records."""
    runs = fault["outcomes"]
    designed = [run["as_designed"] for run in runs if not run["problem"]]
    return (
        bool(designed) and all(designed) and all(run["record_intact"] and not run["unsafe"] for run in runs)
    )


def row(fault: Mapping[str, Any]) -> dict[str, str]:
    """A fault's row of the table, by column; times as median/maximum."""
    runs, designed = fault["outcomes"], fault["designed"]
    valid = [run for run in runs if not run["problem"]]

    def ms(key: str, shown: bool, absent: float | None = None) -> str:
        found = [absent if run[key] is None else run[key] for run in valid if shown]
        times = [1000 * seconds for seconds in found if seconds is not None]
        pair = (median(times), max(times)) if times else ()
        return "/".join("never" if each == math.inf else f"{each:.0f}" for each in pair) or "–"

    states, damaged = sorted({run["state"] for run in valid}), sum(not run["record_intact"] for run in runs)
    note = "" if good(fault) else " **mismatch**" if valid else " **no valid run**"
    note += f", {damaged} records damaged" if damaged else ""
    note += ", load" if len(runs) > len(valid) or any(run["load_holds"] for run in valid) else ""
    texts = (
        fault["fault"],
        str(sum(run["unsafe"] for run in runs)),
        ms("last_command", fault["rests"]),
        ms("stop_command", designed in ("FAULT", "STOPPED", "IDLE")),
        ms("standstill", fault["rests"], math.inf),
        " / ".join(states) + ("" if states == [designed] else f" (designed: {designed})"),
        f"{sum(run['as_designed'] for run in valid)}/{len(valid)}" + note,
    )
    return dict(zip(COLUMNS, texts, strict=True))


def read(file: Path) -> list[dict[str, Any]]:
    """The faults of a file that `--out` wrote, the last line of each, in the order of the first."""
    return list({fault["name"]: fault for fault in map(json.loads, file.read_text().splitlines())}.values())


def measure(arm: Any, cases: list, repeat: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Run each case; yield what `stored` returns."""
    for bench, own in arm.benches(cases, folder):
        for case in own:
            begin = time.monotonic()
            fault = stored(case, [o for _ in range(repeat) for o in attempt(bench, case)])
            took = time.monotonic() - begin
            print(f"{took:6.1f} s  {'  '.join(row(fault).values())}", file=sys.stderr, flush=True)
            yield fault


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, default="xarm7")
    parser.add_argument("--faults", default="", help="names, with commas between (default: all)")
    parser.add_argument("--repeat", type=int, default=20, help="runs of each (default 20)")
    parser.add_argument(
        "--out", type=Path, help="file to which each fault's runs are appended, a JSON line a fault"
    )
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # benchmarks are no installed package
    arm = import_module(ARMS[args.arm])
    known = {case.name: case for case in arm.CASES}
    names = [name for name in args.faults.split(",") if name] or list(known)
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--faults: found {', '.join(unknown)}, expected some of {', '.join(known)}")

    begin = time.monotonic()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the vendor's SDK talks on stdout, also in other processes
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        for fault in measure(arm, [known[name] for name in names], args.repeat, Path(folder)):
            faults.append(fault)
            if args.out:
                with args.out.open("a") as file:
                    file.write(json.dumps(fault) + "\n")
    for line in (COLUMNS, ["---"] * len(COLUMNS), *(row(fault).values() for fault in faults)):
        print("| " + " | ".join(line) + " |", file=out)
    runs = [run for fault in faults for run in fault["outcomes"] if not run["problem"]]
    speed, load = min((run["speed"] for run in runs), default=0.0), os.getloadavg()[0]
    print(
        f"{len(runs)} runs in {time.monotonic() - begin:.0f} s, at {speed:.2f} rad/s or more, load {load:.1f}",
        file=out,
    )
    if bad := [fault["name"] for fault in faults if not good(fault)]:
        print("not as designed, unsafe, or without a valid run:", ", ".join(bad), file=out)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
