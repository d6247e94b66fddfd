"""Pool a camera's token map into one vector: mean, spatial softmax or attention.

    pool = CameraPooling(PoolingSettings(kind="spatial_softmax"), cameras=2, dim=384, tokens=64, out_dim=128)
    pool(torch.randn(5, 2, 64, 384)).shape       # (5, 2, 128)

"mean" follows MVP and RPT, and loses positions. Spatial softmax (Levine et al., 2016) computes the expected position of
each learned heat map; here, every heat map also pools a small feature, and the mean can be appended. "attention" reads
the map with learned queries and a position embedding.

Features are usually frozen, so no gradient flows to the tokens: each kind applies one matrix product to the wide token
map and works on the narrow result. That product includes the normalisation of the channels, so the normalised map,
which would be the largest tensor in training, is never computed.
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

Tokens = int | tuple[int, int]  # token count of a square map, or its rows and columns
PLACED = 3  # last channels of a token that holds its own place: x, y, and whether it is of a crop


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
    """Return the positions (N, 2) of tokens, row by row: x to the right and y down, both -1..1 over the image."""
    shape = (math.isqrt(tokens),) * 2 if isinstance(tokens, int) else tokens
    rows, columns = (torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in shape)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


class FeatureNorm(nn.Module):
    """Normalise the channels of one camera with the moments of the training data."""

    def __init__(self, dim: int):
        super().__init__()
        self.product = torch.float32  # dtype of the product with the tokens in training
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inverse_std", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(-self.mean * self.inverse_std, x, self.inverse_std)

    def project(self, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Multiply weights (O, dim) with normalised x (M, N, dim); return (O, M, N), and a shift (O,) still to be added."""
        x = x if x.dtype == torch.bfloat16 else x.float()  # already rounded for the product
        weight = weight * self.inverse_std
        shift = -(weight @ self.mean)
        x = x.to(self.product if self.training else torch.float32)
        # This order gives a single product for all members of an ensemble (torch.vmap over the weights), and keeps the
        # tokens of a frame contiguous, which is fastest for a softmax over them.
        return (weight.to(x.dtype) @ x.flatten(0, 1).T).unflatten(1, x.shape[:2]), shift


class MeanPool(nn.Module):
    """Mean over tokens, then norm, then Linear; N = 1 for features that are already pooled."""

    def __init__(self, settings: PoolingSettings, dim: int, tokens: Tokens, out_dim: int):
        super().__init__()
        self.out = nn.Linear(dim, out_dim)

    def forward(self, tokens: Tensor, norm: FeatureNorm) -> Tensor:
        return self.out(norm(tokens.mean(1, dtype=torch.float32)))


class SpatialSoftmax(nn.Module):
    """Expected position and pooled feature of k heat maps, and the mean of all tokens."""

    def __init__(self, settings: PoolingSettings, dim: int, tokens: Tokens, out_dim: int):
        super().__init__()
        self.settings, self.k, self.f = settings, settings.keypoints, settings.values
        self.project = nn.Linear(dim, self.k + self.f)
        self.log_temperature = nn.Parameter(torch.full((self.k,), math.log(settings.temperature)))
        self.register_buffer("places", map_places(tokens), persistent=False)
        self.out = Dense(self.k * (2 + self.f) + (dim if settings.keep_mean else 0), out_dim)

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the weights (k, D) of the heat maps, before a softmax, and their constants at each token (k, N)."""
        hot = self.project.weight[: self.k] * torch.exp(-self.log_temperature)[:, None]
        return hot, hot.new_zeros(self.k, len(self.places))

    def forward(
        self, tokens: Tensor, norm: FeatureNorm, mean: Tensor | None = None, places: Tensor | None = None
    ) -> Tensor:
        weight, bias = self.project.weight, self.project.bias
        product, shift = norm.project(tokens, torch.cat([self.maps()[0], weight[self.k :]]))  # (k + f, M, N)
        maps, values = product.split([self.k, self.f])
        # (M, k, N); a softmax ignores a constant over all tokens
        heat = maps.transpose(0, 1).softmax(-1, dtype=torch.float32)
        places = (self.places if places is None else places).mT.expand(len(tokens), -1, -1)  # (M, 2, N)
        pooled_values = torch.cat([places, values.transpose(0, 1).float()], 1)  # (M, 2 + f, N)
        pooled = torch.bmm(heat, pooled_values.mT)  # (M, k, 2 + f)
        # heat sums to 1, so constants over all tokens can be added after pooling
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

    def maps(self) -> tuple[Tensor, Tensor]:
        """Return the weights (h * q, D) of the attention, before a softmax, and its constants at each token (h * q, N)."""
        h, w = self.h, self.w
        # The queries do not depend on the input, so query · key(x) is one product with their combination:
        # h·q columns instead of w for the wide tokens.
        query = self.query * (w // h) ** -0.5
        column = torch.einsum("qhe,hed->hqd", query, self.key.weight.view(h, w // h, -1)).flatten(0, 1)
        position = self.position[:, :w].view(-1, h, w // h)
        return column, torch.einsum("qhe,nhe->hqn", query, position).flatten(0, 1)

    def forward(self, tokens: Tensor, norm: FeatureNorm) -> Tensor:
        q, h, w = self.q, self.h, self.w
        value_position = self.position[:, w:]  # (N, w)
        column, bias = self.maps()
        product, shift = norm.project(tokens, torch.cat([column, self.value.weight]))  # (h*q + w, M, N)
        maps, values = product.split([h * q, w])
        maps = maps.transpose(0, 1) + bias  # (M, h*q, N); a softmax ignores a common shift
        heat = maps.softmax(-1, dtype=torch.float32).unflatten(1, (h, q))  # (M, h, q, N)
        values = (values.transpose(0, 1) + value_position.T).unflatten(1, (h, w // h))  # (M, h, e, N)
        # heat sums to 1, so constants over all tokens can be added after pooling
        constant = self.value.bias + shift[h * q :]
        pooled = heat @ values.mT + constant.view(h, 1, -1)  # (M, h, q, e)
        return self.out(pooled.flatten(1))


POOLINGS = {"mean": MeanPool, "spatial_softmax": SpatialSoftmax, "attention": AttentionPool}


class CameraPooling(nn.Module):
    """Pool every camera of every frame: (M, C, N, D) -> (M, C, out_dim).

    tokens: token count of the square maps, or the rows and columns of each camera's map. If a camera has fewer than N,
    the others are ignored. `blind` is the control experiment: all features are the training data's means.
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
        self.blind = self.placed = False  # placed: tokens hold their own places, see `PLACED`

    def multiply_in(self, dtype: torch.dtype) -> torch.dtype | None:
        """Set the dtype of the product with the tokens in training (inference: float32). Return the dtype in which training
        can pass all tokens, with their means; None: their own."""
        for norm in self.norms:
            norm.product = dtype  # type: ignore[assignment]
        plain = self.settings.kind != "mean" and not self.blind and len(set(self.counts)) == 1
        plain &= not self.placed  # bfloat16 would move the tokens
        return dtype if plain and dtype == torch.bfloat16 else None

    @torch.no_grad()
    def maps(self) -> list[Tensor]:
        """Return each camera's heat maps (K, D + N): weights of the tokens as they are, then a constant per token."""
        maps = [self.pools[i % len(self.pools)].maps() for i in range(len(self.norms))]
        return [
            torch.cat([w * norm.inverse_std, b], -1) for norm, (w, b) in zip(self.norms, maps, strict=True)
        ]

    @torch.no_grad()
    def set_moments(self, mean: Tensor, std: Tensor) -> None:
        """Set the training moments (C, D) of the channels."""
        for norm, m, s in zip(self.norms, mean, std, strict=True):
            norm.mean.copy_(m)  # type: ignore[union-attr, operator]
            norm.inverse_std.copy_(1 / s)  # type: ignore[union-attr, operator]

    def forward(self, features: Tensor, means: Tensor | None = None) -> Tensor:
        """means (M, C, D): means of the tokens, for tokens in the dtype that `multiply_in` returns."""
        pooled = []
        for i, norm in enumerate(self.norms):
            tokens, known = features[:, i, : self.counts[i]], dict[str, Tensor]()
            if self.blind:
                tokens = norm.mean.expand_as(tokens)
            if self.settings.kind == "spatial_softmax":
                known |= {} if means is None else {"mean": means[:, i]}
                known |= {"places": tokens[..., -PLACED:-1].float()} if self.placed else {}
            pooled.append(self.pools[i % len(self.pools)](tokens, norm, **known))
        out = torch.stack(pooled, 1)  # (M, C, out)
        return out if self.camera is None else out + self.camera


def _wave_embedding(places: Tensor, width: int) -> Tensor:
    """Return sines and cosines (N, width) of positions, an initial embedding that is linear to decode."""
    count = -(-width // 4)
    rates = math.pi / 2 * 2.0 ** torch.linspace(0, 2, count)
    angles = places[..., None] * rates  # (N, 2, count)
    waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(1)  # (N, 4 * count)
    # Shuffle, so that keys, values and each head get waves of every rate in both directions.
    order = torch.randperm(waves.shape[1], generator=torch.Generator().manual_seed(0))
    return waves[:, order[:width]].contiguous()
