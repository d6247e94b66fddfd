"""The simulated arm of so101.py behind emulated servos, with its cameras, for `s2robot deploy robot=so101`.

    python emulate.py                                       # serves until Ctrl-C; prints what `deploy` needs
    python emulate.py --deploy "checkpoint=<folder> episodes=64" --seed 20000    # starts it, too, and is its operator

The operator of `--deploy` lays the cube of seed + i as the arm comes to the start of episode i, presses `y` once it was held
up, and else answers `n`. The environment is LeRobot's, with mujoco and pyzmq.
"""

import argparse
import base64
import os
import pty
import re
import select
import shlex
import sys
import threading
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from so101 import HALF, HOME, SIZE, WIDEST, Scene, frames  # before mujoco: it chooses OpenGL

# isort: split
import mujoco
import numpy as np
from gymnasium.utils.seeding import np_random

from s2robot.envs.real.emulator.servos import TICKS, TORQUE, Servo, ServoBus
from s2robot.envs.real.operator.prompts import CONFIRM, PLACE, SUCCEEDED, WORD
from s2robot.envs.renderer import OffscreenRenderer

MARGIN = 700  # ticks from both ends of a turn: the calibrated range, with its middle and width
MIDDLE, FULL = (TICKS - 1) / 2, TICKS - 1 - 2 * MARGIN
CONFIGS = Path(__file__).with_name("configs")
SPAWN = get_context("spawn")
FPS, QUALITY = 20, 95  # of the cameras: frames a second, and JPEG's


def to_ticks(values: np.ndarray) -> np.ndarray:
    """Joints, rad, and the opening, 0 to 1, as a calibrated bus has them."""
    return np.append(MIDDLE + values[:5] * TICKS / (2 * np.pi), MARGIN + values[5] * FULL)


def from_ticks(ticks: np.ndarray) -> np.ndarray:
    return np.append((ticks[:5] - MIDDLE) * 2 * np.pi / TICKS, (ticks[5] - MARGIN) / FULL)


class ModelServo(Servo):
    """A servo whose joint is the model's; the bus has moved it."""

    def __init__(self, number: int, place: float):
        self.joint = place
        super().__init__(number, place, False)

    def moved(self, goal: float, seconds: float) -> float:
        return self.joint - self.place


class ArmBus(ServoBus):
    """Servos that move a scene's arm; without torque a joint falls."""

    def __init__(self, scene: Scene):
        super().__init__()
        self.scene, self.lock, self.qpos = scene, threading.Lock(), SPAWN.RawArray("d", [*scene.data.qpos])
        places = to_ticks(scene.measured)
        self.servos = {i: ModelServo(i, float(place)) for i, place in enumerate(places, 1)}

    def advance(self, seconds: float) -> None:
        servos = self.servos.values()
        with self.lock:
            goals, now = from_ticks(np.array([servo.goal for servo in servos])), self.scene.measured
            on = [bool(servo[TORQUE]) and not servo.jammed for servo in servos]
            target = np.where(on, goals, now)  # a servo at its goal does not push
            self.scene.data.ctrl[:] = target * ([1] * 5 + [WIDEST])
            for _ in range(round(seconds / self.scene.model.opt.timestep)):
                self.scene.step()
            self.qpos[:] = self.scene.data.qpos
            for servo, place in zip(servos, to_ticks(self.scene.measured), strict=True):
                servo.joint = float(place)
        super().advance(seconds)


def film(qpos: Any, port: int) -> None:
    """Publish both cameras of a model at `qpos`, as LeRobot's `ZMQCamera` reads them; in a process of its own, for the bus."""
    import cv2
    import zmq

    os.nice(10)  # the bus has to answer in time
    model = Scene().model
    data, renderer = mujoco.MjData(model), OffscreenRenderer(model, (SIZE, SIZE))
    socket = zmq.Context.instance().socket(zmq.PUB)
    socket.setsockopt(zmq.SNDHWM, 1)
    socket.bind(f"tcp://127.0.0.1:{port}")
    while True:
        due, taken, images = time.monotonic() + 1 / FPS, time.time(), {}
        data.qpos[:] = qpos[:]
        for name, frame in frames(model, data, renderer).items():
            # RGB is encoded as if it were BGR, since LeRobot does not swap the colours either
            _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            images[name] = base64.b64encode(jpeg).decode()
        socket.send_json({"timestamps": dict.fromkeys(images, taken), "images": images})
        time.sleep(max(0.0, due - time.monotonic()))


class Operator:
    """Answers what `deploy` asks on its terminal, and keeps the cube out of the way until the arm is at its start."""

    def __init__(self, bus: ArmBus, seed: int):
        self.bus, self.next, self.waiting, self.pressed = bus, seed, False, True

    def answer(self, said: str) -> str:
        """What to type after what was printed since the last answer, or nothing."""
        scene = self.bus.scene
        if CONFIRM in said:
            return f"{WORD}\n"
        if PLACE in said:
            with self.bus.lock:
                scene.data.qpos[7:10] = [-0.3, -0.3, HALF]
                scene.success, self.waiting, self.pressed = False, True, False
            return "\n"
        if SUCCEEDED in said:
            self.pressed = True
            return f"{'y' if scene.success else 'n'}\n"
        with self.bus.lock:
            now = scene.measured
            if self.waiting and np.abs(now[:5] - HOME).max() < 0.1 and now[5] > 0.8:
                scene.reset(int(np_random(self.next)[0].integers(2**31)), arm=False)
                self.next, self.waiting = self.next + 1, False
        if scene.success and not self.pressed:
            self.pressed = True
            return "y"
        return ""


def run_deploy(words: list[str], operator: Operator, out: Path | None) -> int:
    """Run `s2robot deploy --live` in a terminal of its own, which is shown here; its exit code. `out`: its verdicts, as CSV."""
    pid, terminal = pty.fork()
    if not pid:
        os.execv(sys.executable, [sys.executable, "-m", "s2robot", "deploy", "--live", *words])
    said, found = "", dict[str, bool]()
    while True:
        if select.select([terminal], [], [], 0.02)[0]:
            try:
                text = os.read(terminal, 65536).decode(errors="replace")
            except OSError:  # it has ended
                break
            print(text, end="", flush=True)
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
            said = (said + plain)[-2000:]
            found |= {seed: not no for seed, no in re.findall(r"\(seed (\d+)\): (no )?success", said)}
        if typed := operator.answer(said):
            said = ""
            os.write(terminal, typed.encode())
    if out is not None:
        out.write_text(
            "position,success\n" + "".join(f"{seed},{int(good)}\n" for seed, good in found.items())
        )
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--camera-port", type=int, default=5555)
    parser.add_argument(
        "--seed", type=int, default=20000, help="of the first episode's cube, as of `s2robot evaluate`"
    )
    parser.add_argument("--deploy", help="words of `s2robot deploy`; without, the bus is served until Ctrl-C")
    parser.add_argument("--out", type=Path, help="CSV of the episodes' outcomes, for `s2robot stats`")
    args = parser.parse_args()
    scene = Scene()
    scene.reset(args.seed)
    with ArmBus(scene) as bus, TemporaryDirectory() as folder:
        bus.calibrate(Path(folder) / "emulated.json", MARGIN)
        SPAWN.Process(target=film, args=(bus.qpos, args.camera_port), daemon=True).start()
        words = [f"--config-dir={CONFIGS}", "robot=so101", f"robot.port={bus.port}", f"seed={args.seed}"]
        words += [f"robot.options.calibration_dir={folder}"]
        print("s2robot deploy", *words, flush=True)
        if args.deploy:
            return run_deploy([*words, *shlex.split(args.deploy)], Operator(bus, args.seed), args.out)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
