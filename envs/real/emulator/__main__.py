"""Run the emulator: prints its ports as one JSON line, and ends on Ctrl-C, SIGTERM or the op "shutdown".

python -m s2robot.envs.real.emulator                      # MuJoCo scene with cameras, default ports
python -m s2robot.envs.real.emulator --plant kinematic --ports free
"""

import argparse
import asyncio
import json
import os
import sys

from s2robot.envs.errors import EnvError
from s2robot.envs.real.emulator.emulator import PLANTS, EmulatorConfig, serve
from s2robot.envs.real.emulator.ports import Ports, free_ports


def main(arguments: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m s2robot.envs.real.emulator", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--plant", choices=PLANTS, default="mujoco")
    parser.add_argument("--ports", default="default", help="'default', 'free' or a JSON object")
    parser.add_argument("--fps", type=float, default=EmulatorConfig.fps, help="camera frames per second")
    parser.add_argument("--env", default="{}", help="settings of CubePickConfig, a JSON object")
    parser.add_argument("--seed", type=int, default=0, help="of the first scene")
    parser.add_argument(
        "--until-stdin-closes", action="store_true", help="end with the process that started this one"
    )
    a = parser.parse_args(arguments)
    try:
        ports = {"default": Ports, "free": free_ports}.get(a.ports, lambda: Ports.from_json(a.ports))()
        config = EmulatorConfig(a.plant, a.seed, a.fps, _json_object(a.env))
        ended = _stdin_closes if a.until_stdin_closes else None
        asyncio.run(serve(config, ports, lambda: print(ports.to_json(), flush=True), ended))
    except EnvError as error:
        print(f"emulator: {error}", file=sys.stderr)
        return 2
    return 0


def _stdin_closes() -> None:
    while os.read(0, 4096):  # sys.stdin's lock, held at exit, would abort the interpreter
        pass


def _json_object(text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise EnvError(f"--env: found {text!r} ({error}), expected a JSON object") from None
    if not isinstance(value, dict):
        raise EnvError(f"--env: found {text!r}, expected a JSON object")
    return value


if __name__ == "__main__":
    sys.exit(main())
