"""Camera frames per second: robosuite's own camera observations against s2robot.envs.renderer.OffscreenRenderer.

    python benchmarks/rendering.py
    python benchmarks/rendering.py --robot panda --size 448 --rounds 50

Four ways, measured in turns in one process, medians over the rounds:

1. robosuite as it comes: Lift with `use_camera_obs=True`, its cameras frontview, agentview and
   robot0_eye_in_hand. The price of the observation is a step less a step of the same world without cameras.
2. robosuite's renderer on CubePick's scene: the same three views (hand, left, right) of the same states as
   3 and 4.
3. OffscreenRenderer that draws every triangle each time: no shadows, reflections and multi-sampling.
4. OffscreenRenderer as CubePick uses it.

Physics is measured apart and is in no frame rate. Needs EGL or OSMesa; nothing else should run meanwhile, or take
`--clock cpu`, which counts the process's seconds on the processors instead of the wall's.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable

import numpy as np

from s2robot.envs.cube_pick import CubePick  # first: it sets MUJOCO_GL before mujoco is imported
from s2robot.envs.renderer import OffscreenRenderer
from s2robot.envs.robots import ROBOTS

import robosuite  # isort: skip
from robosuite.utils.log_utils import ROBOSUITE_DEFAULT_LOGGER  # isort: skip
from robosuite.utils.binding_utils import MjRenderContextOffscreen  # isort: skip

STOCK_CAMERAS = ["frontview", "agentview", "robot0_eye_in_hand"]
STOCK = "robosuite, its camera observations"
STOCK_RENDERER = "robosuite's renderer, our views"
ALL = "OffscreenRenderer, all triangles"
OURS = "OffscreenRenderer"


def stock_lift(robot: str, size: int, cameras: bool):
    """robosuite's Lift with its default settings; with or without camera observations.

    `hard_reset=False` keeps the first simulation: a second one frees the first one's OpenGL objects whenever
    Python collects it, and may take those of a context that happens to be current.
    """
    views = {"camera_names": STOCK_CAMERAS, "camera_heights": size, "camera_widths": size} if cameras else {}
    env = robosuite.make(
        "Lift",
        robots=ROBOTS[robot].robosuite_name,
        use_camera_obs=cameras,
        has_renderer=False,
        has_offscreen_renderer=cameras,
        ignore_done=True,
        hard_reset=False,
        **views,
    )
    env.reset()
    return env


def check_drawn(frames: dict[str, np.ndarray]) -> None:
    """A context that lost its buffers draws nothing, very fast: refuse to time that."""
    for name, frame in frames.items():
        if frame.std() < 1:
            raise RuntimeError(f"{name}: the frame is flat; nothing was drawn, so nothing can be measured")


def stock_renderer(env: CubePick) -> MjRenderContextOffscreen:
    """The render context that robosuite would give this world, set as its environments set it."""
    context = MjRenderContextOffscreen(env.world.sim, device_id=-1)
    context.vopt.geomgroup[0] = 0  # collision shapes
    context.vopt.geomgroup[1] = 1  # visual shapes
    return context


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(work: Callable[[], object], clock: str) -> float:
    now = CLOCKS[clock]
    start = now()
    work()
    return now() - start


def measure(robot: str, size: int, rounds: int, clock: str) -> tuple[dict[str, tuple[float, float]], float]:
    """{way: (seconds of physics a step, of its three frames)}, and the share of pixels that differ between the last two."""
    rng = np.random.default_rng(0)
    with_cameras, without = stock_lift(robot, size, True), stock_lift(robot, size, False)
    env, twin = CubePick(robot=robot, image_size=size), CubePick(robot=robot, image_size=size)
    context = stock_renderer(twin)  # its own model: OffscreenRenderer lowers the quality of the one it draws
    env.reset(seed=0)  # makes the renderer too
    whole_scene = OffscreenRenderer(env.model, (size, size), spare=False, coarse=False)
    names = env.config.cameras

    seen: dict[str, np.ndarray] = {}

    def step_stock(action: np.ndarray) -> None:
        observation = with_cameras.step(action)[0]
        seen.update({name: observation[f"{name}_image"] for name in STOCK_CAMERAS})

    def draw_stock() -> None:
        for name in names:
            seen[name] = twin.world.sim.render(camera_name=name, width=size, height=size)

    def draw_all() -> dict[str, np.ndarray]:
        return {name: whole_scene.render(env.data, i) for name, i in env.camera_ids.items()}

    times: dict[str, list[float]] = defaultdict(list)
    changed = 0
    for i in range(rounds + 3):
        action = rng.uniform(-0.1, 0.1, with_cameras.action_dim)
        delta = np.append(rng.uniform(-0.03, 0.03, 7), 0.0)
        with_cameras.sim._render_context_offscreen.gl_ctx.make_current()  # robosuite does so at creation only
        now = {
            "stock step": seconds(lambda a=action: step_stock(a), clock),
            "stock physics": seconds(lambda a=action: without.step(a), clock),
            "physics": seconds(lambda d=delta: env.step_physics(d), clock),
        }
        twin.set_state(env.get_state())
        context.gl_ctx.make_current()
        now[STOCK_RENDERER] = seconds(draw_stock, clock)
        check_drawn(seen)
        now[ALL] = seconds(draw_all, clock)
        now[OURS] = seconds(env.render_cameras, clock)
        culled, whole = env.render_cameras(), draw_all()
        changed += sum(int((culled[n] != whole[n]).any(-1).sum()) for n in names)
        if i >= 3:  # the first ones fill caches
            for name, value in now.items():
                times[name].append(value)
    middle = {name: statistics.median(values) for name, values in times.items()}
    result = {STOCK: (middle["stock physics"], middle["stock step"] - middle["stock physics"])}
    for name in (STOCK_RENDERER, ALL, OURS):
        result[name] = (middle["physics"], middle[name])
    whole_scene.close()
    env.close()
    return result, changed / ((rounds + 3) * len(names) * size**2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--robot", choices=list(ROBOTS), default="xarm7")
    parser.add_argument("--size", type=int, default=256, help="pixels along a side (default 256)")
    parser.add_argument("--rounds", type=int, default=40, help="steps of every way (default 40)")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="what is counted (default wall)"
    )
    args = parser.parse_args()
    ROBOSUITE_DEFAULT_LOGGER.setLevel("ERROR")  # it tells of the parts that a single arm lacks
    result, changed = measure(args.robot, args.size, args.rounds, args.clock)
    count = len(STOCK_CAMERAS)
    base, same_views = result[STOCK][1], result[STOCK_RENDERER][1]
    print(f"\n{args.robot}, {count} cameras, {args.size} x {args.size} px, medians of {args.rounds} steps\n")
    print(f"{'':<36}{'physics':>11}{'3 frames':>11}{'frames':>9}{'against':>12}{'against':>14}")
    print(f"{'':<36}{'ms a step':>11}{'ms':>11}{'a second':>9}{'robosuite':>12}{'its renderer':>14}")
    for name, (physics, frames) in result.items():
        print(
            f"{name:<36}{physics * 1e3:>11.1f}{frames * 1e3:>11.1f}{count / frames:>9.1f}"
            f"{base / frames:>10.2f} x{same_views / frames:>12.2f} x"
        )
    print(
        f"\nPixels that differ between the last two, by fewer triangles: {changed:.1%}."
        " robosuite steps at 20 Hz, CubePick at 10 Hz."
    )
    ratio = base / result[OURS][1]
    print(f"OffscreenRenderer gives {ratio:.2f} x the frames a second of robosuite's camera observations.")


if __name__ == "__main__":
    main()
