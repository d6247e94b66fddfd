"""The control loop in a process of its own, for the faults that hit a process; started by benchmarks/fault_bench.py.

    python -m benchmarks.fault_victim PORTS STORE PATIENCE

Prints a line once the arm is under way, and how the episode ended if it lives to see that.
"""

import json
import os
import signal
import sys


def main(ports: str, store: str, patience: str) -> None:
    # here, because the supervisor's process imports this file too
    from contextlib import ExitStack
    from pathlib import Path

    from benchmarks.fault_bridge import Swing, assemble
    from s2robot.envs.errors import EnvError
    from s2robot.envs.real.arms.geometry import ArmPoints
    from s2robot.envs.real.emulator.side import Ports

    told: list[bool] = []
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the vendor's SDK talks on stdout

    def ripe() -> None:
        if not told:
            told.append(True)
            print("moving", file=out)

    with ExitStack() as stack:
        where = Ports.from_json(ports)
        points = ArmPoints("xarm7")
        bridge = assemble(stack, where, Path(store), Swing(), float(patience), points, False, ripe)
        stop = bridge.runtime.stop
        stack.enter_context(stop.on_signals())
        stop.moving = True
        try:
            result = bridge.runtime.run(10_000)
            state, reasons = result.state.name, result.reasons
        except EnvError as error:  # for one, no supervisor any more
            state, reasons = "STOPPED", (str(error),)
        print(json.dumps({"state": state, "reasons": reasons}), file=out)


if __name__ == "__main__":
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # a shell ignores it for what it starts in the background
    main(*sys.argv[1:])
