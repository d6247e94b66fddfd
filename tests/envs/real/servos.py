"""Emulated servos in a process of their own, as LeRobot's busy reading would starve them in a thread."""

from multiprocessing import get_context
from pathlib import Path

from s2robot.envs.real.emulator import servos


class ServoProcess:
    """`servos("bus.mute = True")` runs a statement there; `servos("=bus.packets")` returns a value."""

    def __init__(self, calibration: Path):
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, calibration), daemon=True)
        self.process.start()
        self.port = self._pipe.recv()

    def __call__(self, code: str):
        self._pipe.send(code)
        return self._pipe.recv()

    def close(self):
        self.process.kill()
        self.process.join()


def _serve(pipe, calibration: Path):
    with servos.ServoBus() as bus:
        bus.calibrate(calibration)
        pipe.send(bus.port)
        names = vars(servos) | {"bus": bus}
        while True:
            code = pipe.recv()
            pipe.send(eval(code[1:], names) if code.startswith("=") else exec(code, names))
