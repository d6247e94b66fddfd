"""Masked autoencoding (He et al., arXiv 2111.06377), the way MVP pre-trains its encoders.

    mae = MAE(MVPViT(spec), decoder_dim=128, decoder_depth=2, decoder_heads=4, scales=(1, 2))
    loss, pred, mask = mae(images, torch.Generator().manual_seed(0))
    mae.vit.state_dict()                   # exactly the encoder's

Three quarters of the patches are hidden. The encoder gets the others; a light decoder predicts the pixels of the hidden
ones, each patch normalised by its own mean and deviation. Hidden patches are never embedded, visible ones never predicted.

With several scales S2 is part of the pre-training (arXiv 2403.13043, Section 4.3, which uses a classifier). A cell of the
base grid is hidden together with its s x s patches at scale s. The encoder runs on the visible patches of every tile of
every scale, a cell's tokens are averaged and concatenated as in S2, and the decoder predicts hidden cells at all scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.backbones.vit import MVPViT, sincos_2d
from s2robot.s2.engine import resize


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * patch * patch), patches row by row, channels first inside a patch."""
    return F.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """Invert `patchify` for square images."""
    grid = int(patches.shape[1] ** 0.5)
    return F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (grid, grid)), patch)


def cell_tokens(grid: int, scale: int) -> tuple[Tensor, Tensor]:
    """Return the tile (N,) of each cell of the base grid at a scale, and its patches in that tile (N, s * s)."""
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    row, column = row.flatten() * scale, column.flatten() * scale  # first fine patch of each cell
    block = row // grid * scale + column // grid
    step = torch.arange(scale)
    fine_row = row[:, None, None] % grid + step[:, None]
    fine_column = column[:, None, None] % grid + step
    return block, (fine_row * grid + fine_column).flatten(1)


class MAE(nn.Module):
    """An encoder and the decoder that pre-trains it.

    `scales` are integers, 1 first, each a divisor of the next and of the encoder's grid; images are max(scales) times
    the encoder's image size.
    """

    def __init__(
        self,
        vit: MVPViT,
        decoder_dim: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        mask_ratio: float = 0.75,
        scales: Sequence[int] = (1,),
    ) -> None:
        super().__init__()
        spec, self.scales = vit.spec, tuple(scales)
        self.patches = spec.grid**2
        self.blocks = self.scales[-1] ** 2  # tiles of the largest scale, all with equally many visible cells
        self.visible = int(self.patches * (1 - mask_ratio))
        self.vit = vit
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_embed = nn.Linear(spec.dim * len(self.scales), decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos", sincos_2d(decoder_dim, spec.grid))
        make = partial(Block, decoder_dim, decoder_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
        self.decoder_blocks = nn.Sequential(*(make() for _ in range(decoder_depth)))
        self.decoder_norm = norm(decoder_dim)
        pixels = spec.patch_size**2 * 3
        self.decoder_pred = nn.Linear(decoder_dim, pixels * sum(scale**2 for scale in self.scales))
        for scale in self.scales:
            block, token = cell_tokens(spec.grid, scale)
            self.register_buffer(f"block_{scale}", block, persistent=False)  # (N,) tile of a cell
            self.register_buffer(f"token_{scale}", token, persistent=False)  # (N, s * s) indices in the tile
        self._init_weights()

    def _init_weights(self) -> None:
        """Initialise as MAE does: Xavier for every Linear and the patch projection, small tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        weight = self.vit.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.data.view(weight.shape[0], -1))
        nn.init.normal_(self.vit.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def draw_mask(self, batch: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw sorted cells to keep (B, K) and to hide (B, N - K), the same number in every tile of the largest scale.

        Drawn on the CPU, so that every device hides the same cells.
        """
        noise = torch.rand(batch, self.patches, generator=generator)
        # rank the cells within their tile; the first ranks of all tiles are kept
        block = self.get_buffer(f"block_{self.scales[-1]}").cpu()
        by_block = (noise + block).argsort(dim=1)  # (B, N), tile by tile
        rank = torch.arange(self.patches) % (self.patches // self.blocks)
        noise = torch.empty_like(noise).scatter(1, by_block, rank.to(noise).expand(batch, -1))
        order = noise.argsort(dim=1, stable=True)
        keep = order[:, : self.visible].sort(dim=1).values
        return keep, order[:, self.visible :].sort(dim=1).values

    def cells(self, images: Tensor) -> list[Tensor]:
        """Return the patches of each cell of the base grid at every scale s, (B, N, s * s, P)."""
        spec = self.vit.spec
        out = []
        for scale in self.scales:
            level = resize(images, spec.img_size * scale)
            patches = patchify(level, spec.patch_size)  # (B, s * g * s * g, P)
            grid = patches.unflatten(1, (spec.grid, scale, spec.grid, scale)).transpose(2, 3)
            out.append(grid.flatten(3, 4).flatten(1, 2))  # (B, N, s * s, P)
        return out

    def encode_visible(self, cells: Sequence[Tensor], keep: Tensor) -> Tensor:
        """Encode the kept cells (B, K) of every scale to S2 tokens (B, 1 + K, D * scales) after the final norm.

        At scale s each of the s * s tiles keeps K / (s * s) cells of s * s patches, that is K tokens at every scale, so
        the tiles of all scales go through the blocks in one batch.
        """
        vit = self.vit
        proj = vit.patch_embed.proj  # a convolution with kernel = stride is a Linear over patches
        batch, count = keep.shape
        tokens, orders = [], []
        for scale, patches in zip(self.scales, cells, strict=True):
            order = self.get_buffer(f"block_{scale}")[keep].argsort(dim=1, stable=True)  # by tile, (B, K)
            by_tile = keep.gather(1, order)
            index = by_tile[..., None, None].expand(-1, -1, *patches.shape[2:])
            x = F.linear(patches.gather(1, index), proj.weight.flatten(1), proj.bias)  # (B, K, s * s, D)
            x = x + vit.pos_embed[0, 1:][self.get_buffer(f"token_{scale}")[by_tile]]
            tokens.append(x.reshape(batch * scale**2, count, -1))
            orders.append(order)
        x = torch.cat(tokens)
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls.to(x.dtype), x], dim=1)  # (B * tiles, 1 + K, D)
        x = vit.norm(vit.blocks(x))
        out = []
        for scale, part, order in zip(self.scales, x.split([len(t) for t in tokens]), orders, strict=True):
            first = part[:, 0].unflatten(0, (batch, -1)).mean(dim=1, keepdim=True)  # (B, 1, D)
            body = part[:, 1:].reshape(batch, count, scale**2, -1).mean(dim=2)  # (B, K, D), by tile
            back = order.argsort(dim=1)[..., None].expand(-1, -1, body.shape[-1])
            out.append(torch.cat([first, body.gather(1, back)], dim=1))
        return torch.cat(out, dim=-1)

    def decode(self, tokens: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """Predict the pixels of the hidden cells (B, N - K, P * patches) from tokens (B, 1 + K, D * scales)."""
        x = self.decoder_embed(tokens)  # (B, 1 + K, d)
        cls_pos, pos = self.decoder_pos[0, :1], self.decoder_pos[0, 1:]
        # in the order CLS, visible, hidden
        x = torch.cat([x[:, :1] + cls_pos, x[:, 1:] + pos[keep], self.mask_token + pos[hidden]], dim=1)
        x = self.decoder_blocks(x)[:, 1 + keep.shape[1] :]
        return self.decoder_pred(self.decoder_norm(x))

    def forward(
        self, images: Tensor, cells: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, pred (B, N - K, patches, P) and mask (B, N, True = hidden) of normalised images (B, 3, S, S).

        cells: the result of `draw_mask`; None draws a mask. `pred` contains the patches of each hidden cell, by scale,
        normalised by each patch's mean and deviation. Every scale has the same weight in the loss.
        """
        keep, hidden = (x.to(images.device) for x in cells or self.draw_mask(len(images), None))
        targets = self.cells(images)
        pred = self.decode(self.encode_visible(targets, keep), keep, hidden)
        pred = pred.unflatten(-1, (-1, targets[0].shape[-1]))  # (B, N - K, patches, P)
        losses = []
        for patches, part in zip(targets, pred.split([s**2 for s in self.scales], dim=2), strict=True):
            target = patches.gather(1, hidden[..., None, None].expand(-1, -1, *patches.shape[2:]))
            var, mean = torch.var_mean(target, dim=-1, keepdim=True)
            losses.append(F.mse_loss(part.float(), (target - mean) / (var + 1e-6).sqrt()))
        mask = torch.ones(images.shape[0], self.patches, dtype=torch.bool, device=images.device)
        return torch.stack(losses).mean(), pred, mask.scatter(1, keep, False)

    @torch.no_grad()
    def reconstruct(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return the images (B, 3, S, S) with hidden patches set to 0, and with hidden patches predicted."""
        spec, scale = self.vit.spec, self.scales[-1]
        _, pred, mask = self(images, self.draw_mask(len(images), generator))
        patches = self.cells(images)[-1]  # (B, N, s * s, P)
        var, mean = torch.var_mean(patches[mask], dim=-1, keepdim=True)
        filled = patches.clone()
        filled[mask] = pred[:, :, -(scale**2) :].flatten(0, 1).float() * (var + 1e-6).sqrt() + mean

        def draw(cells: Tensor) -> Tensor:
            grid = cells.unflatten(2, (scale, scale)).unflatten(1, (spec.grid, spec.grid))
            return unpatchify(grid.transpose(2, 3).flatten(1, 4), spec.patch_size)

        return draw(patches * ~mask[..., None, None]), draw(filled)
