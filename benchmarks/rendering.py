"""Compare camera frames per second: robosuite's camera observations and s2robot.envs.renderer.OffscreenRenderer.

    python benchmarks/rendering.py

They take turns; medians over the rounds, without physics. Run nothing else meanwhile, or take `--clock cpu`. robosuite's is a
step of Lift with `use_camera_obs=True` less a step of the same world without cameras; ours draws CubePick.
"""

import argparse
import statistics
import time
from collections import defaultdict
from functools import partial
from timeit import timeit

import numpy as np

from s2robot.envs.cube_pick import CubePick  # first: it sets MUJOCO_GL before mujoco is imported
from s2robot.envs.robots import ROBOTS

import robosuite  # isort: skip
from robosuite.utils.log_utils import ROBOSUITE_DEFAULT_LOGGER  # isort: skip

STOCK_CAMERAS = ["frontview", "agentview", "robot0_eye_in_hand"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
STOCK, OURS = "robosuite's camera observations", "OffscreenRenderer"


def stock_lift(robot: str, size: int, cameras: bool):
    """robosuite's Lift with its default settings; with or without camera observations.

    `hard_reset=False` keeps the first simulation: a second one frees the first one's OpenGL objects whenever
    Python collects it, and may take those of a context that happens to be current.
    """
    views = {"camera_names": STOCK_CAMERAS, "camera_heights": size, "camera_widths": size} if cameras else {}
    views |= {"use_camera_obs": cameras, "has_offscreen_renderer": cameras, "has_renderer": False}
    views |= {"ignore_done": True, "hard_reset": False}
    env = robosuite.make("Lift", robots=ROBOTS[robot].robosuite_name, **views)
    env.reset()
    return env


def measure(robot: str, size: int, rounds: int, clock: str) -> dict[str, float]:
    """Return the seconds of three frames by each."""
    rng, seconds = np.random.default_rng(0), partial(timeit, timer=CLOCKS[clock], number=1)
    with_cameras, without = stock_lift(robot, size, True), stock_lift(robot, size, False)
    env = CubePick(robot=robot, image_size=size)
    env.reset(seed=0)  # makes the renderer too
    seen: dict[str, np.ndarray] = {}

    def step_stock(action: np.ndarray) -> None:
        observation = with_cameras.step(action)[0]
        seen.update({name: observation[f"{name}_image"] for name in STOCK_CAMERAS})

    times: dict[str, list[float]] = defaultdict(list)
    for i in range(rounds + 3):
        action = rng.uniform(-0.1, 0.1, with_cameras.action_dim)
        with_cameras.sim._render_context_offscreen.gl_ctx.make_current()  # robosuite does so at creation only
        step = seconds(partial(step_stock, action))
        now = {STOCK: step - seconds(partial(without.step, action))}
        env.step_physics(np.append(rng.uniform(-0.03, 0.03, 7), 0.0))
        if flat := [name for name, frame in seen.items() if frame.std() < 1]:  # very fast: not to be timed
            raise RuntimeError(f"{flat[0]}: the frame is flat; nothing was drawn, so nothing can be measured")
        now[OURS] = seconds(env.render_cameras)
        if i >= 3:  # the first ones fill caches
            for name, value in now.items():
                times[name].append(value)
    env.close()
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robot", choices=list(ROBOTS), default="xarm7")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side (default 256)")
    parser.add_argument("--rounds", type=int, default=40, help="steps of every way (default 40)")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="default wall")
    args = parser.parse_args()
    ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # it reports the parts that a single arm lacks
    result = measure(args.robot, args.size, args.rounds, args.clock)
    print(f"\n{args.robot}, {len(STOCK_CAMERAS)} cameras of {args.size} px, medians of {args.rounds} steps\n")
    for name, took in result.items():
        print(f"{name:<36}{took * 1e3:.1f} ms for all frames, {result[STOCK] / took:.2f} x")


if __name__ == "__main__":
    main()
