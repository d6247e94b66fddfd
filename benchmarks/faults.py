"""Inject faults into a running bridge; tabulate which commands reached the emulated arm and when it stopped.

    python benchmarks/faults.py                               # every fault 20 times
    python benchmarks/faults.py --faults nan,hang --repeat 3
    python benchmarks/faults.py --markdown table.md --json faults.json
    <python of LeRobot's environment> benchmarks/faults.py --arm so101

Each run is an episode with the vendor's SDK, the emulated box, the live control loop with its default limits, a supervisor,
cameras and a recorder (an SO-101: LeRobot, emulated servos, loop and supervisor); the fault strikes while the arm moves.
docs/faults.md explains the columns. A run that a busy machine spoilt is repeated. Exit code 1 if anything was unsafe or not
as designed.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARMS = {"xarm7": "benchmarks.fault_cases", "so101": "benchmarks.fault_so101"}  # each has CASES and benches
TRIES = 4  # of a run that load has spoilt
HEAD = "fault|unsafe|last motion command, ms|stop command, ms|standstill, ms|afterwards|as designed".split(
    "|"
)


def attempt(bench: Any, case: Any) -> list[Any]:
    """Outcomes of a run: the last one counts, those before it were spoilt by load."""
    outcomes = [bench.run(case)]
    while not outcomes[-1].valid and len(outcomes) < TRIES:
        print(f"  {case.name}: {outcomes[-1].problem}; repeated", file=sys.stderr)
        outcomes.append(bench.run(case))
    return outcomes


def row(case: Any, outcomes: list) -> dict[str, Any]:
    """The figures of one fault."""
    import numpy as np

    valid = [o for o in outcomes if o.valid]
    stopped = case.designed in ("FAULT", "STOPPED", "IDLE")

    def spread(key: str, shown: bool, absent: float | None = None) -> list[float | None]:
        found = [getattr(o, key) if getattr(o, key) is not None else absent for o in valid if shown]
        values = [value for value in found if value is not None]
        return [float(np.median(values)), float(max(values))] if values else [None, None]

    return {
        "fault": case.what,
        "name": case.name,
        "runs": len(valid),
        "peak_speed": max((o.peak for o in valid), default=None),
        "speed_min": min((o.speed for o in valid), default=None),
        "unsafe": sum(o.unsafe for o in outcomes),
        "last_command": spread("last_command", case.rests),
        "stop_command": spread("stop_command", stopped),
        "standstill": spread("standstill", case.rests, np.inf),
        "designed": case.designed,
        "states": sorted({o.state for o in valid}),
        "as_designed": sum(o.as_designed for o in valid),
        "records_intact": sum(o.record_intact for o in outcomes),
        "records": len(outcomes),
        "repeated_for_load": len(outcomes) - len(valid),
        "held_for_load": sum(o.load_holds > 0 for o in valid),
        "reasons": sorted({why for o in valid for why in o.reasons[:1]}),
        "good": bool(valid)
        and all(o.as_designed for o in valid)
        and all(o.record_intact and o.unsafe == 0 for o in outcomes),
    }


def cells(r: dict[str, Any]) -> list[str]:
    """A row of the table."""

    def ms(spread: list[float | None]) -> str:
        if spread[0] is None:
            return "–"
        return " / ".join("never" if v == float("inf") else f"{v * 1000:.0f}" for v in spread)

    note = "" if r["good"] else " **mismatch**" if r["runs"] else " **no valid run**"
    note += f", {damaged} records damaged" if (damaged := r["records"] - r["records_intact"]) else ""
    note += ", load" if r["held_for_load"] + r["repeated_for_load"] else ""
    return [
        r["fault"], str(r["unsafe"]), ms(r["last_command"]), ms(r["stop_command"]), ms(r["standstill"]),
        " / ".join(r["states"]) + ("" if r["states"] == [r["designed"]] else f" (designed: {r['designed']})"),
        f"{r['as_designed']}/{r['runs']}" + note,
    ]  # fmt: skip


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table for docs/faults.md."""
    lines = [HEAD, ["---"] * len(HEAD), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(arm: Any, cases: list, repeat: int, folder: Path) -> list[dict[str, Any]]:
    """All runs, by case."""
    rows = {}
    for bench, own in arm.benches(cases, folder):
        for case in own:
            begin = time.monotonic()
            outcomes = [o for _ in range(repeat) for o in attempt(bench, case)]
            rows[case.name] = row(case, outcomes) | {"outcomes": [asdict(o) for o in outcomes]}
            took = time.monotonic() - begin
            print(f"{took:6.1f} s  {'  '.join(cells(rows[case.name]))}", file=sys.stderr, flush=True)
    return [rows[case.name] for case in cases]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arm", choices=ARMS, default="xarm7")
    parser.add_argument("--faults", default="", help="names, with commas between (default: all)")
    parser.add_argument("--repeat", type=int, default=20, help="runs of each (default 20)")
    parser.add_argument("--json", type=Path, help="file for all figures of all runs")
    parser.add_argument("--markdown", type=Path, help="file for the table as Markdown")
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
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(arm, [known[name] for name in names], args.repeat, Path(folder))
    print(markdown(rows), file=out)
    took, load = time.monotonic() - begin, os.getloadavg()[0]
    speed = min((r["speed_min"] for r in rows if r["runs"]), default=0.0)
    print(
        f"{sum(r['runs'] for r in rows)} runs in {took:.0f} s, at {speed:.2f} rad/s or more, load {load:.1f}",
        file=out,
    )
    if args.markdown:
        args.markdown.write_text(markdown(rows) + "\n")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1, default=str) + "\n")
    if bad := [r["name"] for r in rows if not r["good"]]:
        print("not as designed, unsafe, or without a valid run:", ", ".join(bad), file=out)
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
