"""Our side of the tables that time: loading, and the default policy over the same pipe.

python -m benchmarks.peers.ours act <checkpoint>
python -m benchmarks.peers.ours features <store> <seconds>      # batches of 16 windows from the feature cache
python -m benchmarks.peers.ours images <store> <seconds>        # batches of 16 random steps from stored pictures
"""

import sys
from collections.abc import Iterator
from itertools import count

import numpy as np
import torch
from hydra import compose, initialize_config_dir

from benchmarks.peers.peer import CAMERAS, clock, serve
from s2robot.common.paths import configs_dir
from s2robot.common.settings import encoder_settings
from s2robot.demos.store import EpisodeStore
from s2robot.demos.windows import make_windows
from s2robot.encoders.build import build_encoder
from s2robot.envs.cube_config import CubePickConfig
from s2robot.envs.tasks import make
from s2robot.features import FeaturesSettings, encode_demos
from s2robot.loading import load_policy
from s2robot.training.batches import Batches


class Ours:
    about = "s2robot, its default policy"

    def __init__(self, checkpoint: str):
        self.actor = load_policy(checkpoint, "cpu").actor
        self.reset = self.actor.reset

    def act(self, images: dict[str, np.ndarray], proprio: np.ndarray) -> np.ndarray:
        return self.actor.act({"images": images, "proprio": proprio})


def features(data: str) -> Iterator[dict]:
    """Batches as a training takes them: out of the cache, which is filled first if it is empty."""
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        encoder = build_encoder(encoder_settings(compose("train")))
    store = EpisodeStore.open(data)
    cached, _ = encode_demos(store, encoder, tuple(CAMERAS), FeaturesSettings())
    windows = make_windows(store, np.arange(len(store)), 1, 8)
    batches = Batches(store, cached, windows, torch.device("cpu"), product=torch.float32)
    return (batches.step(step, 16, 0) for step in count())


def images(data: str) -> Iterator[dict]:
    """Random steps with the pictures of all cameras as floats, as robomimic and LeRobot give them."""
    store, rng = EpisodeStore.open(data), np.random.default_rng(0)
    while True:
        rows = rng.integers(store.num_steps, size=16)
        frames = {c: np.concatenate([store.read(f"images_{c}", i, i + 1) for i in rows]) for c in CAMERAS}
        yield {c: torch.from_numpy(seen).permute(0, 3, 1, 2).float() / 255 for c, seen in frames.items()}


def world(whose: str) -> Iterator:
    """Control steps at 10 Hz without moving, each with an observation; an episode has 80 of them."""
    if whose == "ours":
        env = make(CubePickConfig(image_size=84))
    else:
        import robosuite

        cameras = {"camera_names": ["robot0_eye_in_hand", "agentview", "frontview"], "use_camera_obs": True}
        sizes = {"camera_heights": 84, "camera_widths": 84, "control_freq": 10, "horizon": 80}
        env = robosuite.make("Lift", robots="Panda", has_renderer=False, **cameras, **sizes)
    still = np.zeros(8 if whose == "ours" else env.action_dim)
    while True:
        env.reset()
        yield from (env.step(still) for _ in range(80))


if __name__ == "__main__":
    verb, path, *seconds = sys.argv[1:]
    if verb == "act":
        serve(lambda: Ours(path))
    else:
        found = {"features": features, "images": images, "world": world}[verb](path)
        clock(found, float(seconds[0]))
