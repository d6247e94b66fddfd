"""Encode each frame twice: whole, and once more the part that a gaze selects, enlarged.

    encoder = build_encoder({"name": "mvp-tiny", "scales": [1], "zoom": 2, "gaze": "centre"})
    encoder.encode(images).shape  # uint8 (B, 256, 256, 3) -> (B, 128, 195): 64 tokens of the frame, 64 of its centre

The last `PLACED` channels of a token are its place in the whole frame (x to the right, y down, -1 to 1), and 1 in the crop or
0. The gaze depends on the frame alone, so that features can be cached. It is the centre, a place drawn from the pixels, or the
centre of heat maps, linear in the whole frame's tokens: those of a policy, or of a file (`benchmarks/gaze.py`).
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn

from s2robot.backbones.device import channels_first, tensor_of
from s2robot.backbones.weights import weights_sha256
from s2robot.core.errors import UserError, reported
from s2robot.encoders.encoder import S2Encoder, encode_cameras, stack_padded
from s2robot.policies import load_checkpoint
from s2robot.policies.pooling import PLACED, MeanPool
from s2robot.s2.tiling import Size

KEY, FIXED = "s2.fovea.gaze", ("centre", "random")
SHARPNESS = 4  # power of a heat map: a policy's sharp ones count, the flat ones point to the centre


class FovealEncoder(S2Encoder):
    """An encoder of a whole frame and of a crop of it, whose side is that of the frame divided by zoom.

    gaze: "centre", "random", or a path, see `read_gaze`. maps: the heat maps stored with a policy, which replace those there.
    """

    def __init__(
        self, model: nn.Module, zoom: float, gaze: str, maps: Mapping[str, Tensor] | None = None, **args: Any
    ) -> None:
        super().__init__(model, **args)
        self.zoom, self.gaze, self.coarse = zoom, gaze, args.get("resolution") == "upsampled"
        self.dim += PLACED
        maps = {} if gaze in FIXED else maps or read_gaze(gaze, super().fingerprint)
        self.keys = sorted(maps)  # one per camera: gaze.<number>.<camera>
        for i, key in enumerate(self.keys):
            self.register_buffer(f"maps{i}", maps[key], persistent=False)

    @property
    def maps(self) -> dict[str, Tensor]:
        """The heat maps of each camera, (K, D + N): weights of a token, and a constant per token; {} for a fixed gaze."""
        return {key: getattr(self, f"maps{i}").cpu() for i, key in enumerate(self.keys)}

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """sha256 of the encoder's own and everything that determines the crop."""
        parts = [super().fingerprint, self.zoom, weights_sha256(self.maps) if self.keys else self.gaze]
        parts += ["upsampled"] * self.coarse
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def image_size(self) -> int:
        """Side of the square frames to render. The crop has the pixels of the largest size, or if upsampled, no new ones."""
        return super().image_size if self.coarse else round(super().image_size * self.zoom)

    def map_of(self, height: int, width: int) -> Size:
        """Return the rows and columns of the frame's tokens, with those of the crop below."""
        rows, columns = super().map_of(height, width)
        return 2 * rows, columns

    def gflops_of(self, height: int, width: int) -> float:
        return 2 * super().gflops_of(height, width)

    def check_cameras(self, cameras: Sequence[str]) -> None:
        """Raise UserError if the heat maps are those of other cameras."""
        names = [key.split(".", 2)[2] for key in self.keys]
        if names and names != list(cameras):
            raise UserError(f"{KEY}: expected one of {', '.join(cameras)}, got one of {', '.join(names)}")

    @torch.inference_mode()
    def encode(self, images: Tensor | np.ndarray, cameras: Sequence[int] = (0,)) -> Tensor:
        """Encode uint8 RGB (B, H, W, 3), image i from cameras[i % len(cameras)], to tokens (B, 2 * N, dim)."""
        images = tensor_of(images)
        if not len(images):
            return super().encode(images)
        frame = channels_first(images[:1]).shape[-2:]
        crop = [max(1, round(side / self.zoom)) for side in frame]
        layout = self.layout_of(*frame)  # the crop's, too: its sides are rounded
        whole, places = self._encode(images, layout), token_places(*layout.grid).to(self.scale.device)
        corners = corners_of(self.look(images, whole, places, cameras), frame, crop)
        crops = [x[a : a + crop[0], b : b + crop[1]] for x, (a, b) in zip(images, corners, strict=True)]
        share = torch.tensor(crop) / torch.tensor(frame)  # (2,)
        centre = (2 * corners / torch.tensor(frame) + share - 1).flip(1).to(places)  # (B, 2)
        inside = centre[:, None] + share.flip(0).to(places) * places  # (B, N, 2)
        tokens = torch.cat([whole, self._encode(torch.stack(crops), layout)], 1)
        where = torch.cat([places.expand_as(inside), inside], 1)
        is_crop = torch.arange(len(places) * 2, device=where.device) >= len(places)
        return torch.cat([tokens, where, is_crop.expand(len(where), -1)[..., None]], -1)

    forward = encode

    def look(self, images: Tensor, whole: Tensor, places: Tensor, cameras: Sequence[int]) -> Tensor:
        """Return the gaze (B, 2) in frames (B, H, W, 3) with tokens (B, N, D) at places (N, 2)."""
        if self.gaze == "centre":
            return torch.zeros(len(images), 2)
        if self.gaze == "random":
            seeds = [zlib.crc32(image.cpu().numpy().tobytes()) for image in images]
            drawn = [np.random.default_rng(seed).uniform(-1, 1, 2) for seed in seeds]
            return torch.tensor(np.stack(drawn)) * (1 - 1 / self.zoom)
        count = len(cameras)
        each = [gaze_at(whole[i::count], getattr(self, f"maps{c}"), places) for i, c in enumerate(cameras)]
        return torch.stack(each, 1).flatten(0, 1).cpu()

    def encode_cameras(self, frames: Sequence[np.ndarray]) -> Tensor:
        if len({seen.shape for seen in frames}) == 1:
            return encode_cameras(partial(self.encode, cameras=range(len(frames))), frames)
        return stack_padded([self.encode(seen, (i,)) for i, seen in enumerate(frames)])


def token_places(rows: int, columns: int) -> Tensor:
    """Return the centres (N, 2) of a frame's tokens, row by row: x to the right and y down, -1 to 1 over the frame."""
    y, x = ((2 * torch.arange(n) + 1) / n - 1 for n in (rows, columns))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).flatten(0, 1)


def gaze_at(tokens: Tensor, maps: Tensor, places: Tensor) -> Tensor:
    """Return the centre (B, 2) of the heat maps (K, D + N) of tokens (B, N, D) at places (N, 2)."""
    n, d = tokens.shape[1:]
    if maps.shape[1] != d + n:
        raise UserError(f"{KEY}: expected maps of {d} channels at {n} tokens, got {maps.shape[1]} weights")
    weight, bias = maps.split([d, n], -1)
    heat = (tokens @ weight.T + bias.T).softmax(1).pow(SHARPNESS).sum(-1)  # (B, N)
    return heat / heat.sum(1, keepdim=True) @ places


def corners_of(gaze: Tensor, frame: Sequence[int], crop: Sequence[int]) -> Tensor:
    """Return the top and left pixels (B, 2) of crops centred at a gaze (B, 2), moved into the frame."""
    room = torch.tensor(frame) - torch.tensor(crop)
    middle = (gaze.double().flip(1) + 1) / 2 * torch.tensor(frame)
    return (middle - torch.tensor(crop) / 2).round().long().clamp(torch.zeros_like(room), room)


def read_gaze(source: str, encoder: str) -> dict[str, Tensor]:
    """Return heat maps by camera of a policy, or of a .safetensors file with the fingerprint `encoder` in its metadata.

    UserError: the source has no heat maps, or they belong to another encoder.
    """
    if (path := Path(source)).is_dir():
        policy, contract = load_checkpoint(path)
        trained_on, pooling = contract["encoder"]["fingerprint"], policy.network.pooling
        if policy.network.count > 1:  # the weights of all members are stacked
            stacked = {own.replace("/", "."): x for own, x in policy.network.state_dict().items()}
            pooling.load_state_dict({name: stacked[f"pooling.{name}"][0] for name in pooling.state_dict()})
        if isinstance(pooling.pools[0], MeanPool):
            raise UserError(f"{KEY}: {path}: expected a policy with heat maps, got policy.pooling.kind=mean")
        maps = {f"gaze.{i:03d}.{policy.spec.cameras[i]}": x for i, x in enumerate(pooling.maps())}
    else:
        expected = f"{', '.join(FIXED)}, a checkpoint or a file of heat maps"
        with reported(f"{KEY}: expected {expected}, got {source!r}"), safe_open(path, "pt") as file:
            trained_on = (file.metadata() or {}).get("encoder", "none")
            maps = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if trained_on != encoder:
        raise UserError(
            f"{KEY}: {path}: expected a gaze for encoder {encoder[:12]}, got one for {trained_on[:12]}"
        )
    return maps
