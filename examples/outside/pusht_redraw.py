"""Draw Push-T's human demonstrations again at other sizes, from the states that diffusion_policy's buffer holds.

    pip install gym-pusht
    python examples/outside/pusht_redraw.py pusht_cchi_v7_replay.zarr 192 384     # writes pusht192.zarr, pusht384.zarr

gym-pusht draws at 680 px and resizes. At 96 px, 0.3 % of the pixels differ from the buffer's by more than 8 of 255, at edges.
"""

import sys

import gym_pusht  # noqa: F401  registers the world
import gymnasium as gym
import numpy as np
import zarr

BATCH = 64  # frames drawn between two writes


def place(world, state: np.ndarray) -> None:
    """Put the pusher and the block where a recorded state (x, y, x, y, angle) has them; pymunk moves their shapes only
    when told to."""
    world.agent.position = state[:2].tolist()
    world.block.angle = float(state[4])  # before the position: the block turns about its centre of mass
    world.block.position = state[2:4].tolist()
    for body in (world.agent, world.block):
        world.space.reindex_shapes_for_body(body)


def redraw(source: str, sizes: list[int]) -> None:
    buffer = zarr.open_group(source, mode="r")
    world = gym.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos").unwrapped
    world.reset(seed=0)
    states, images = buffer["data/state"][:], {}
    for size in sizes:
        group = zarr.open_group(f"pusht{size}.zarr", mode="w", zarr_format=2)
        shape = (len(states), size, size, 3)
        images[size] = group.create_array("data/img", shape=shape, chunks=(16, *shape[1:]), dtype="u1")
        for key in ("data/state", "data/action", "meta/episode_ends"):
            group.create_array(key, data=buffer[key][:])
    for start in range(0, len(states), BATCH):
        drawn = {size: [] for size in sizes}
        for state in states[start : start + BATCH]:
            place(world, state)
            screen = world._draw()
            for size in sizes:
                drawn[size].append(world._get_img(screen, size, size))
        for size in sizes:
            images[size][start : start + BATCH] = np.stack(drawn[size])


if __name__ == "__main__":
    redraw(sys.argv[1], [int(size) for size in sys.argv[2:]])
