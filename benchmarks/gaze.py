"""Fit heat maps that find the manipulated object, for `s2.fovea.gaze`, and count how often a crop contains it.

    python benchmarks/gaze.py runs/oracle.safetensors demos.path=<dataset>
    python benchmarks/gaze.py runs/oracle.safetensors --policy <checkpoint> demos.path=<dataset>
    s2robot train s2=fovea s2.fovea.gaze=runs/oracle.safetensors demos.path=<dataset>

The dataset stores a simulator's states, so the object's place is known: it is the free body that moves most in an episode. One
heat map per camera is fitted, linear in the tokens of scale 1. The table has the share of frames of held-out episodes whose
crop contains the object's centre, for each gaze and zoom. Further arguments are overrides of `s2robot train`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import save_file
from torch import Tensor

from s2robot.core.files import configs_dir
from s2robot.demos.replay import world_of_demos
from s2robot.demos.store import EpisodeStore
from s2robot.encoders.build import build_encoder
from s2robot.encoders.fovea import gaze_at, read_gaze, token_places
from s2robot.envs.gl import require_simulator
from s2robot.envs.tasks import make_cached
from s2robot.features import encode_demos
from s2robot.pipeline import read_task

BATCH, RATE, STEPS, HELD_OUT = 256, 0.02, 400, 0.2  # frames per step, learning rate, steps, share of episodes
FREE = 0  # MuJoCo's type of a joint that lets a body move freely


def object_places(store: EpisodeStore, cameras: tuple[str, ...]) -> Tensor:
    """Return where each camera sees the object in each step, (T, C, 2): x and y, -1 to 1, NaN behind the camera."""
    env: Any = make_cached(world_of_demos(store).replace(cameras=cameras), draw=False)
    places = []
    for i in range(len(store)):
        rows, seen, positions = store.episode_slice(i), [], []
        for state in store.read("state", rows.start, rows.stop):
            env.set_state(state)
            free = env.model.jnt_bodyid[env.model.jnt_type == FREE]
            positions.append(env.data.xpos[free].copy())  # (bodies, 3)
            points = [env.projected(position) for position in positions[-1]]
            seen.append([[point[camera] for camera in cameras] for point in points])
        moves = np.linalg.norm(np.ptp(positions, axis=0), axis=-1)
        places.append(np.array(seen)[:, moves.argmax()])  # (T_ep, C, 2)
    return torch.from_numpy(2 * np.concatenate(places) - 1).float()


def fit_maps(tokens: Tensor, targets: Tensor, places: Tensor, steps: int) -> Tensor:
    """Fit a heat map (1, D + N) whose centre in tokens (T, N, D) is near the targets (T, 2); NaN are left out."""
    known = targets.isfinite().all(-1).nonzero()[:, 0]
    spread = tokens[known[:: max(1, len(known) // BATCH)]].std((0, 1)).clamp(min=1e-6)
    scale = torch.cat([1 / spread, torch.ones(tokens.shape[1])])
    maps = torch.zeros(1, len(scale), requires_grad=True)
    optimiser, draw = torch.optim.AdamW([maps], lr=RATE), torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = known[torch.randint(len(known), (BATCH,), generator=draw)]
        error = gaze_at(tokens[rows], maps * scale, places) - targets[rows]
        optimiser.zero_grad()
        error.square().sum(-1).mean().backward()
        optimiser.step()
    return (maps * scale).detach().contiguous()


def inside(gaze: Tensor, targets: Tensor, zoom: float) -> float:
    """Return the share of crops at a gaze (n, 2), moved into the frame, that contain the targets (n, 2)."""
    off = (targets - gaze.clamp(1 / zoom - 1, 1 - 1 / zoom)).abs() <= 1 / zoom
    return float(off.all(-1).float().mean())


def main(arguments: list[str] | None = None) -> dict[tuple[str, float], list[float]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the file to write, .safetensors")
    parser.add_argument("--policy", help="checkpoint on the same encoder, whose gaze is measured, too")
    parser.add_argument("--zooms", type=float, nargs="+", default=[2, 4])
    parser.add_argument("overrides", nargs="*", help="overrides of `s2robot train`")
    args = parser.parse_intermixed_args(arguments)
    require_simulator()
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        task = read_task(compose("train", ["s2=single", *args.overrides]))
    store, encoder = task.open_demos(), build_encoder(task.encoder)
    places = token_places(encoder.grid, encoder.grid)
    others = list(read_gaze(args.policy, encoder.fingerprint).values()) if args.policy else []
    features, _ = encode_demos(store, encoder, task.cameras, task.features)
    targets = object_places(store, task.cameras)  # (T, C, 2)
    first = store.episode_slice(len(store) - max(1, round(HELD_OUT * len(store)))).start
    named, shares = dict[str, Tensor](), dict[tuple[str, float], list[float]]()
    draw = torch.Generator().manual_seed(0)
    for i, camera in enumerate(task.cameras):
        tokens = torch.from_numpy(np.array(features[:, i])).float()  # (T, N, D)
        maps = fit_maps(tokens[:first], targets[:first, i], places, STEPS)
        named[f"gaze.{i:03d}.{camera}"] = maps
        looks = {"object": gaze_at(tokens[first:], maps, places)}
        looks |= {"policy": gaze_at(tokens[first:], others[i], places)} if others else {}
        looks["centre"] = torch.zeros_like(looks["object"])
        for zoom in args.zooms:  # a random crop lies anywhere in the frame, as in `FovealEncoder.look`
            looks["random"] = (2 * torch.rand(looks["centre"].shape, generator=draw) - 1) * (1 - 1 / zoom)
            for name, look in looks.items():
                shares.setdefault((name, zoom), []).append(inside(look, targets[first:, i], zoom))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(named, args.out, {"encoder": encoder.fingerprint})
    for (name, zoom), each in shares.items():
        cameras = ", ".join(f"{c} {100 * share:.1f} %" for c, share in zip(task.cameras, each, strict=True))
        print(f"{name:8} zoom {zoom:g}: {cameras}")
    return shares


if __name__ == "__main__":
    main()
