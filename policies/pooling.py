"""From a camera's token map to one vector: mean, spatial softmax or attention.

    pool = CameraPooling(PoolingSettings(kind="spatial_softmax"), cameras=2, dim=384, tokens=64, out_dim=128)
    pool(torch.randn(5, 2, 64, 384)).shape       # (5, 2, 128)

"mean" is what MVP and RPT do, and it loses where a thing is. Spatial softmax (Levine et al., 2016) computes the expected
place of each learned heat map; here every heat map also pools a small feature, and the mean stands beside it.
"attention" reads the map with learned queries and a position embedding.

Features are mostly frozen, and then no gradient flows to the tokens: each kind touches the wide token map with one
matrix product and works on the narrow result. The channels' normalisation is folded into that product, so the
normalised map, which is the largest thing in a training, is never made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2robot.core.settings import Settings, from_yaml
from s2robot.policies.bodies.mlp import Dense
from s2robot.policies.bodies.transformer import even_heads

Tokens = int | tuple[int, int]  # how many form a square map, or its rows and columns


class PoolingSettings(Settings, at="policy.pooling", file="policy/common/policy"):
    rules = even_heads
    width: int = from_yaml(ge=1)
    heads: int = from_yaml(ge=1)
    kind: Literal["mean", "spatial_softmax", "attention"] = from_yaml()
    shared: bool = from_yaml()
    keypoints: int = from_yaml(ge=1)
    values: int = from_yaml(ge=0)
    temperature: float = from_yaml(gt=0)
    keep_mean: bool = from_yaml()
    queries: int = from_yaml(ge=1)


def map_places(tokens: Tokens) -> Tensor:
    """Places (N, 2) of the tokens, row by row: x to the right and y down, both -1..1 over the image."""
    shape = (math.isqrt(tokens),) * 2 if isinstance(tokens, int) else tokens
    rows, columns = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


class FeatureNorm(nn.Module):
    """Brings the channels of one camera to a common size by the moments of the training data."""

    def __init__(self, dim: int):
        super().__init__()
        self.blind = False  # the control: every normalised feature is zero
        self.product = torch.float32  # number format of the product with the tokens, in a training
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inverse_std", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.blind:
            return torch.zeros_like(x)
        return torch.addcmul(-self.mean * self.inverse_std, x, self.inverse_std)

    def project(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | float]:
        """The product (O, M, N) of weights (O, dim) with the normalised x (M, N, dim), and what is still to be added (O,)."""
        x = x if x.dtype == torch.bfloat16 else x.float()  # rounded for the product already
        shift: Tensor | float = 0.0
        if self.blind:
            x = torch.zeros_like(x)
        else:
            weight = weight * self.inverse_std
            shift = -(weight @ self.mean)
            x = x.to(self.product if self.training else torch.float32)
        # In this order it is one product for the members of an ensemble (torch.vmap over the weights), and a row holds the
        # tokens of a frame side by side, as a softmax over them reads fastest.
        return (weight.to(x.dtype) @ x.flatten(0, 1).T).unflatten(1, x.shape[:2]), shift


class MeanPool(nn.Module):
    """Mean over tokens, then norm, then Linear; N = 1 stands for features that are pooled already."""

    def __init__(self, settings: PoolingSettings, dim: int, tokens: Tokens, out_dim: int):
        super().__init__()
        self.out = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tensor, norm: FeatureNorm) -> Tensor:
        return self.out(norm(tokens.mean(1, dtype=torch.float32)))


class SpatialSoftmax(nn.Module):
    """Expected place and pooled feature of k heat maps, and the mean of all tokens."""

    def __init__(self, settings: PoolingSettings, dim: int, tokens: Tokens, out_dim: int):
        super().__init__()
        self.settings, self.k, self.f = settings, settings.keypoints, settings.values
        self.project = nn.Linear(dim, self.k + self.f)
        self.log_temperature = nn.Parameter(torch.full((self.k,), math.log(settings.temperature)))
        self.register_buffer("places", map_places(tokens), persistent=False)
        self.out = Dense(self.k * (2 + self.f) + (dim if settings.keep_mean else 0), out_dim)

    def forward(self, tokens: Tensor, norm: FeatureNorm, mean: Tensor | None = None) -> Tensor:
        weight, bias = self.project.weight, self.project.bias
        hot = weight[: self.k] * torch.exp(-self.log_temperature)[:, None]
        product, shift = norm.project(tokens, torch.cat([hot, weight[self.k :]]))  # (k + f, M, N)
        maps, values = product.split([self.k, self.f])
        # (M, k, N); a softmax does not see what is the same for all tokens
        heat = maps.transpose(0, 1).softmax(-1, dtype=torch.float32)
        places = self.places.T.expand(len(tokens), -1, -1)
        what = torch.cat([places, values.transpose(0, 1).float()], 1)  # (M, 2 + f, N)
        pooled = torch.bmm(heat, what.mT)  # (M, k, 2 + f)
        # heat adds up to 1, so that what is the same for all tokens may as well be added now
        pooled = (pooled + F.pad((bias + shift)[self.k :], (2, 0))).flatten(1)
        if self.settings.keep_mean:
            average = tokens.float().mean(1) if mean is None else mean
            pooled = torch.cat([pooled, norm(average)], -1)
        return self.out(pooled)


class AttentionPool(nn.Module):
    """Learned queries attend to the tokens, whose keys and values carry a position embedding."""

    def __init__(self, settings: PoolingSettings, dim: int, tokens: Tokens, out_dim: int):
        super().__init__()
        q, h, w = settings.queries, settings.heads, settings.width
        self.q, self.h, self.w = q, h, w
        self.query = nn.Parameter(torch.randn(q, h, w // h))
        self.key = nn.Linear(dim, w, bias=False)
        self.value = nn.Linear(dim, w)
        self.position = nn.Parameter(_wave_embedding(map_places(tokens), 2 * w))
        self.out = Dense(q * w, out_dim)

    def forward(self, tokens: Tensor, norm: FeatureNorm) -> Tensor:
        q, h, w = self.q, self.h, self.w
        key_position, value_position = self.position.split(w, -1)  # (N, w) each
        # The queries do not depend on the input, so query · key(x) is one product with their combination:
        # h·q columns for the wide tokens instead of w.
        query = self.query * (w // h) ** -0.5
        key = self.key.weight.view(h, w // h, -1)
        column = torch.einsum("qhe,hed->hqd", query, key).flatten(0, 1)  # (h*q, D)
        bias = torch.einsum("qhe,nhe->hqn", query, key_position.view(-1, h, w // h)).flatten(0, 1)
        product, shift = norm.project(tokens, torch.cat([column, self.value.weight]))  # (h*q + w, M, N)
        maps, values = product.split([h * q, w])
        maps = maps.transpose(0, 1) + bias  # (M, h*q, N); a softmax does not see a shift of all
        heat = maps.softmax(-1, dtype=torch.float32).unflatten(1, (h, q))  # (M, h, q, N)
        values = (values.transpose(0, 1) + value_position.T).unflatten(1, (h, w // h))  # (M, h, e, N)
        # heat adds up to 1, so that what is the same for all tokens may as well be added now
        constant = self.value.bias + (shift[h * q :] if isinstance(shift, Tensor) else shift)
        pooled = heat @ values.mT + constant.view(h, 1, -1)  # (M, h, q, e)
        return self.out(pooled.flatten(1))


POOLINGS = {"mean": MeanPool, "spatial_softmax": SpatialSoftmax, "attention": AttentionPool}


class CameraPooling(nn.Module):
    """Pools every camera of every frame: (M, C, N, D) -> (M, C, out_dim).

    tokens: how many each camera's square map has, or each one's rows and columns. Of a camera with fewer than N only
    its own are read. `blind` is the control: every normalised feature is zero.
    """

    def __init__(
        self, settings: PoolingSettings, cameras: int, dim: int, tokens: int | Sequence[Tokens], out_dim: int
    ):
        super().__init__()
        maps: list[Tokens] = [tokens] * cameras if isinstance(tokens, int) else list(tokens)
        self.settings, self.counts = settings, [n if isinstance(n, int) else math.prod(n) for n in maps]
        pool, count = POOLINGS[settings.kind], 1 if settings.shared else cameras
        self.norms = nn.ModuleList(FeatureNorm(dim) for _ in range(cameras))
        self.pools = nn.ModuleList(pool(settings, dim, maps[i], out_dim) for i in range(count))
        self.camera = nn.Parameter(torch.randn(cameras, out_dim) * 0.02) if settings.shared else None

    def multiply_in(self, dtype: torch.dtype) -> torch.dtype | None:
        """Set the number format of the product with the tokens in a training (acting: float32); return `token_dtype`."""
        for norm in self.norms:
            norm.product = dtype  # type: ignore[assignment]
        return self.token_dtype

    @property
    def token_dtype(self) -> torch.dtype | None:
        """The number format in which a training may give all tokens, with their means; None: as they are."""
        plain = self.settings.kind != "mean" and not self.blind and len(set(self.counts)) == 1
        product = self.norms[0].product
        return product if plain and product == torch.bfloat16 else None  # type: ignore[return-value]

    @property
    def blind(self) -> bool:
        return self.norms[0].blind  # type: ignore[return-value]

    @blind.setter
    def blind(self, value: bool) -> None:
        for norm in self.norms:
            norm.blind = value  # type: ignore[assignment]

    @torch.no_grad()
    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Training moments (C, D) of the channels."""
        for norm, m, s in zip(self.norms, mean, std, strict=True):
            norm.mean.copy_(m)  # type: ignore[union-attr, operator]
            norm.inverse_std.copy_(1 / s)  # type: ignore[union-attr, operator]

    def forward(self, features: Tensor, means: Tensor | None = None) -> Tensor:
        """means (M, C, D): of the tokens, where `token_dtype` is set."""
        pooled = []
        for i, norm in enumerate(self.norms):
            known = (means[:, i],) if means is not None and self.settings.kind == "spatial_softmax" else ()
            pooled.append(self.pools[i % len(self.pools)](features[:, i, : self.counts[i]], norm, *known))
        out = torch.stack(pooled, 1)  # (M, C, out)
        return out if self.camera is None else out + self.camera


def _wave_embedding(places: Tensor, width: int) -> Tensor:
    """Sines and cosines (N, width) of the places: a first value from which a place can be read linearly."""
    count = -(-width // 4)
    rates = math.pi / 2 * 2.0 ** torch.linspace(0, 2, count)
    angles = places[..., None] * rates  # (N, 2, count)
    waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # (N, 4 * count)
    # Shuffled, so that keys, values and each head get waves of every rate in both directions.
    order = torch.randperm(waves.shape[1], generator=torch.Generator().manual_seed(0))
    return waves[:, order[:width]].contiguous()
