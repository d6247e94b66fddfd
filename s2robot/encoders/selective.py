"""Scale-selective S2: the fine tiles that matter are computed, the others are remembered or stood in for.

    seeing = select(build_encoder({"name": "mvp-tiny"}), {"tiles": 2, "choose": "coarse", "fill": "last"})
    tokens = seeing.encode(frames, streams=["hand", "left"])      # (2, N, D), as the encoder's own
    seeing.counts                                                 # tiles computed, reused, filled of this call
    seeing.reset()                                                # a new episode begins

The S2 paper (arXiv 2403.13043, Section 5) names the idea and leaves it open. A stream is one camera of one
episode; its memory holds, for every tile of every size, the pixels that it was last computed from and the
features of those. A tile whose pixels are the same keeps its features and costs nothing. The smallest size is
always up to date; of the changed tiles of the larger sizes at most a budget per frame is computed.
"""

from __future__ import annotations

import difflib
import math
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median_low
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2robot.common.errors import UserError
from s2robot.encoders.encoder import S2Encoder
from s2robot.encoders.tiles import Frame, Held, Stream, Tiles, in_a_row
from s2robot.s2.engine import assemble
from s2robot.s2.pyramid import tensor_of

CHOICES = {"choose": ("change", "coarse", "gripper"), "fill": ("last", "coarse")}
_TIMES = 32  # recent calls whose median says what a tile costs


@dataclass(frozen=True)
class Selective:
    """Which fine tiles are computed. Give one budget, tiles or milliseconds.

    Args:
        tiles: fine tiles a frame at most; 0.5 is one in every second frame.
        milliseconds: time a frame; the number of tiles follows from the times measured so far.
        choose: "coarse" takes the tiles whose coarse tokens differ most from those of when they were last computed
            (one more call of the model), "change" those whose pixels do, "gripper" those nearest to a given point.
        fill: what stands for the others: "last" (their last features, coarse ones if there are none) or
            "coarse" (the coarse tokens of that region).
        warm_start: compute the first frame of a stream in full, whatever the budget.
    """

    tiles: float | None = None
    milliseconds: float | None = None
    choose: str = "coarse"
    fill: str = "last"
    warm_start: bool = True

    def __post_init__(self) -> None:
        if (self.tiles is None) == (self.milliseconds is None):
            raise UserError(
                f"selective: found tiles {self.tiles} and milliseconds {self.milliseconds}, "
                "expected exactly one of the two"
            )
        for key in ("tiles", "milliseconds"):
            value = getattr(self, key)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 <= value < math.inf):
                raise UserError(f"selective.{key}: found {value!r}, expected a number of at least 0")
        for key, known in CHOICES.items():
            if getattr(self, key) not in known:
                raise UserError(
                    f"selective.{key}: found {getattr(self, key)!r}, expected one of {', '.join(known)}"
                )
        if not isinstance(self.warm_start, bool):
            raise UserError(f"selective.warm_start: found {self.warm_start!r}, expected true or false")


def select(encoder: S2Encoder, settings: Mapping[str, Any] | None) -> S2Encoder | SelectiveEncoder:
    """The encoder as it is if no budget is set, else a selective one around it. Raises UserError."""
    settings = dict(settings or {})
    known = [f.name for f in fields(Selective)]
    for key in settings:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            raise UserError(f"selective.{key}: unknown key" + (f"; nearest: {near[0]}" if near else ""))
    if settings.get("tiles") is None and settings.get("milliseconds") is None:
        return encoder
    return SelectiveEncoder(encoder, Selective(**settings))


class SelectiveEncoder:
    """An S2Encoder that computes a few fine tiles a frame. Has the encoder's facts and its fingerprint.

    Args:
        encoder: of two or more sizes.
        settings: the budget and how it is spent.

    `counts` holds the frames and the tiles computed, reused and filled of the last call, `totals` of all.
    """

    def __init__(self, encoder: S2Encoder, settings: Selective) -> None:
        if len(encoder.sizes) < 2:
            raise UserError(
                f"selective: the encoder has {len(encoder.sizes)} size ({encoder.sizes[0]}), expected at least 2"
            )
        if encoder.fine:
            raise UserError(
                "selective: found an encoder with s2.fine=true, expected one that averages fine tokens"
            )
        self.encoder, self.settings = encoder, settings
        self.dim, self.grid, self.num_tokens = encoder.dim, encoder.grid, encoder.num_tokens
        self.sizes, self.image_size, self.tile = encoder.sizes, encoder.image_size, encoder.tile
        self.pool, self.name = encoder.pool, encoder.name
        self.num_parameters = encoder.num_parameters
        self._plans: dict[tuple[int, int], Tiles] = {}  # by a frame's shape
        self._places = self._plan(1, 1).places  # of square frames
        self._streams: dict[Hashable, Stream] = {}
        self._jobs: list[tuple[Held, Tensor]] = []
        self._tile_s: deque[float] = deque(maxlen=_TIMES)  # s a tile, one a call of the model
        self._other_s: deque[float] = deque(maxlen=_TIMES)  # s a frame outside the model
        self.counts = dict.fromkeys(("frames", "computed", "reused", "filled"), 0)
        self.totals = dict(self.counts)

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint

    @property
    def gflops_per_image(self) -> float:
        """Of the full encoder: an upper bound."""
        return self.encoder.gflops_per_image

    def report(self, counted: Mapping[str, float] | None = None) -> dict[str, Any]:
        """Settings, tiles of a frame, and how many were computed, reused and filled a frame so far.

        counted: in place of `totals`, those of encoders elsewhere.
        """
        totals = {key: int((counted or {}).get(key, value)) for key, value in self.totals.items()}
        frames = totals.pop("frames")
        rates = {f"{k}_per_frame": round(v / frames, 3) if frames else 0.0 for k, v in totals.items()}
        return {**asdict(self.settings), "frames": frames, "tiles_per_frame": len(self._places), **rates}

    def _plan(self, height: int, width: int) -> Tiles:
        """The tiles of frames of this shape; all square ones have the same."""
        shape = (1, 1) if height == width else (height, width)
        if shape not in self._plans:
            self._plans[shape] = Tiles(self.encoder.layout_of(height, width), self.encoder.scale.device)
        return self._plans[shape]

    def reset(self, streams: Iterable[Hashable] | None = None) -> None:
        """Forget these streams, or all: their next frame is a first one."""
        for stream in list(self._streams) if streams is None else streams:
            self._streams.pop(stream, None)

    @torch.inference_mode()
    def encode(
        self, images: Tensor | np.ndarray, streams: Sequence[Hashable], points: np.ndarray | None = None
    ) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 tokens (B, N, dim), as S2Encoder.encode.

        Args:
            images: any number of frames; several of one stream are taken in their order.
            streams: the camera that each comes from, length B.
            points: for choose="gripper": x to the right, y downwards (B, 2) in 0..1 of the picture. NaN where
                unknown; the tiles of such a frame are chosen by change.

        Raises UserError for another type, shape or length.
        """
        images = tensor_of(images)
        self._check(len(images), streams, points)
        self.counts = dict.fromkeys(self.counts, 0)
        if not len(images):
            return torch.empty(0, self.num_tokens, self.dim, device=self.encoder.scale.device)
        start, in_model = time.perf_counter(), 0.0
        frames: list[Frame] = []
        late = self.settings.choose == "coarse"  # the choice needs the coarse tokens
        try:
            for i, stream in enumerate(streams):
                frame = self._see(images[i : i + 1], stream, None if points is None else points[i])
                frames.append(frame)
                self._take_coarse(frame)
                if not late:
                    self._take_fine(frame)
            if late:
                in_model += self._run()
                for frame in frames:
                    self._take_fine(frame)
            in_model += self._run()
        except BaseException:
            self._jobs.clear()
            self.reset(streams)  # tiles whose turn has not come have no features
            raise
        out = torch.cat([self._assemble(frame) for frame in frames])
        self._other_s.append((self._now() - start - in_model) / len(frames))
        self.counts["frames"] = len(frames)
        for key, value in self.counts.items():
            self.totals[key] += value
        return out

    def _check(self, n: int, streams: Sequence[Hashable], points: np.ndarray | None) -> None:
        if len(streams) != n:
            raise UserError(f"selective: found {len(streams)} streams for {n} images, expected one for each")
        if points is None and self.settings.choose == "gripper":
            raise UserError("selective.choose: gripper needs points (B, 2), found none")
        if points is not None and np.shape(points) != (n, 2):
            raise UserError(f"selective: found points of shape {np.shape(points)}, expected ({n}, 2)")

    def _see(self, image: Tensor, name: Hashable, point: Sequence[float] | None) -> Frame:
        levels = [x[0] for x in self.encoder.pyramid(image)]
        plan = self._plan(*image.shape[1:3])
        if name not in self._streams or self._streams[name].plan is not plan:
            self._streams[name] = Stream(plan, plan.blank(levels), [None] * len(plan.places))
        return Frame(self._streams[name], levels, point, [None] * len(plan.places))

    def _take_coarse(self, frame: Frame) -> None:
        for index, change in enumerate(frame.stream.plan.changes(frame, 0)):
            if change or frame.stream.held[index] is None:
                self._compute(frame, index)
            else:
                self._reuse(frame, index)

    def _take_fine(self, frame: Frame) -> None:
        held, frame.stream.frames = frame.stream.held, frame.stream.frames + 1
        plan = frame.stream.plan
        changes = [0.0] * plan.base
        for level in range(1, len(self.sizes)):
            changes += plan.changes(frame, level)
        changed = []
        for index in range(plan.base, len(plan.places)):
            if changes[index] or held[index] is None:
                changed.append(index)
            else:
                self._reuse(frame, index)
        first = self.settings.warm_start and frame.stream.frames == 1
        allowed = len(changed) if first else self._allowance(frame)
        if allowed < len(changed):
            changed = plan.ranked(frame, changed, changes, self.settings.choose)
        for index in changed[:allowed]:
            self._compute(frame, index)
        for index in changed[allowed:]:
            frame.tiles[index] = held[index] if self.settings.fill == "last" else None
            self.counts["filled"] += 1
        frame.levels.clear()  # no longer needed: the next frame's take their place in the CPU's cache

    def _allowance(self, frame: Frame) -> int:
        """Fine tiles that this frame may have."""
        if self.settings.tiles is not None:
            n, budget = frame.stream.frames, self.settings.tiles
            # rounded, so that ten frames at 0.1 make 1 and not 0.999...
            return math.floor(round(n * budget, 9)) - math.floor(round((n - 1) * budget, 9))
        if not self._tile_s or self.settings.milliseconds is None:
            return 0  # nothing is known of the speed yet
        other = median_low(self._other_s) if self._other_s else 0.0
        tiles = (self.settings.milliseconds / 1e3 - other) / median_low(self._tile_s)
        return max(0, math.floor(tiles) - frame.stream.plan.base)

    def _reuse(self, frame: Frame, index: int) -> None:
        frame.tiles[index] = frame.stream.held[index]
        self.counts["reused"] += 1

    def _compute(self, frame: Frame, index: int) -> None:
        """Queue a tile for the model and remember its pixels."""
        plan = frame.stream.plan
        tile = plan.crop(frame.levels[plan.places[index][0]], index)
        plan.remembered(frame.stream, index).copy_(tile)
        fine = index >= plan.base and self.settings.choose == "coarse"
        held = Held([h for h in frame.tiles[: plan.base] if h is not None] if fine else [])
        frame.tiles[index] = frame.stream.held[index] = held
        self._jobs.append((held, tile * self.encoder.scale + self.encoder.shift))
        self.counts["computed"] += 1

    def _run(self) -> float:
        """All queued tiles through the model, in one call unless it would hold more than a full encoder's;
        returns the seconds it took."""
        encoder, jobs = self.encoder, self._jobs
        if not jobs:
            return 0.0
        start = self._now()
        batch = encoder.frames_at_once * len(self._places)
        for first in range(0, len(jobs), batch):
            part = jobs[first : first + batch]
            tiles = torch.cat([tile for _, tile in part])  # (n, 3, tile, tile)
            outputs = encoder._model(tiles)[:, encoder.num_prefix_tokens :]
            for (held, _), tokens in zip(part, outputs, strict=True):
                held.tokens = tokens.clone()  # a view would keep the whole batch alive
        seconds = self._now() - start
        self._tile_s.append(seconds / len(jobs))
        jobs.clear()
        return seconds

    def _now(self) -> float:
        """The clock, after the work handed to a GPU so far; only a budget in milliseconds waits for that."""
        device = self.encoder.scale.device
        if device.type == "cuda" and self.settings.milliseconds is not None:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def _assemble(self, frame: Frame) -> Tensor:
        """A frame's tiles as S2 tokens (1, N, dim)."""
        plan = frame.stream.plan
        outputs: list[list[Tensor]] = [[] for _ in self.sizes]
        coarse = None if all(frame.tiles) else in_a_row(frame.tiles[: plan.base])
        for index, (held, (level, _, _)) in enumerate(zip(frame.tiles, plan.places, strict=True)):
            if held is not None:
                outputs[level].append(held.tokens.float())
            elif coarse is not None:
                outputs[level].append(coarse[plan.under[index]])
        stacks = [torch.stack(level)[:, None] for level in outputs]  # (k * k, 1, g * g, D) a size
        output = "pooled" if self.pool == "mean" else "tokens"
        return assemble(stacks, plan.layout, output=output).view(1, -1, self.dim)
