"""Masked autoencoding (He et al., arXiv 2111.06377), the way MVP pre-trains its encoders.

    mae = MAE(MVPViT(spec), decoder_dim=128, decoder_depth=2, decoder_heads=4)
    loss, pred, mask = mae(images, torch.Generator().manual_seed(0))
    mae.vit.state_dict()                   # exactly the encoder's

Three quarters of the patches are hidden; the encoder sees the rest only, a light decoder predicts the pixels
of the hidden ones, each patch normalised by its own mean and standard deviation. Nothing is computed that the
loss does not need: hidden patches are never embedded and visible ones never predicted.
"""

from __future__ import annotations

from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from s2robot.errors import UserError
from s2robot.vit import MVPViT, sincos_2d


def patchify(images: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, N, C * patch * patch), patches row by row, channels first inside a patch."""
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // patch, patch, w // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images of three channels."""
    b, n, _ = patches.shape
    grid = int(n**0.5)
    x = patches.reshape(b, grid, grid, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, 3, grid * patch, grid * patch)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, D) at index (B, K) -> (B, K, D)."""
    return torch.gather(x, 1, index[..., None].expand(-1, -1, x.shape[-1]))


class MAE(nn.Module):
    """An encoder and the decoder that pre-trains it."""

    def __init__(
        self,
        vit: MVPViT,
        decoder_dim: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
        mask_ratio: float = 0.75,
    ) -> None:
        super().__init__()
        spec = vit.spec
        if decoder_dim % 4 or decoder_dim % decoder_heads:
            raise UserError(f"decoder.dim {decoder_dim} is not a multiple of 4 and of heads {decoder_heads}")
        self.patches = spec.grid**2
        self.visible = int(self.patches * (1 - mask_ratio))
        if not 1 <= self.visible < self.patches:
            raise UserError(
                f"mask_ratio {mask_ratio} leaves {self.visible} of {self.patches} patches in view"
            )
        self.vit = vit
        norm = partial(nn.LayerNorm, eps=1e-6)
        self.decoder_embed = nn.Linear(spec.dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.register_buffer("decoder_pos", sincos_2d(decoder_dim, spec.grid))
        self.decoder_blocks = nn.ModuleList(
            Block(decoder_dim, decoder_heads, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
            for _ in range(decoder_depth)
        )
        self.decoder_norm = norm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, spec.patch_size**2 * 3)
        self._init_weights()

    def _init_weights(self) -> None:
        """MAE's initialisation: Xavier for every Linear, the patch projection included, and small tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        weight = self.vit.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.data.view(weight.shape[0], -1))
        nn.init.normal_(self.vit.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)

    def encode_visible(self, patches: Tensor, keep: Tensor) -> Tensor:
        """Patches (B, N, P) and the kept positions (B, K) -> tokens (B, 1 + K, D) after the final norm."""
        vit = self.vit
        proj = vit.patch_embed.proj  # a convolution with kernel = stride is a Linear over patches
        x = F.linear(take(patches, keep), proj.weight.flatten(1), proj.bias)  # (B, K, D)
        x = x + vit.pos_embed[0, 1:][keep]
        cls = (vit.cls_token + vit.pos_embed[:, :1]).expand(x.shape[0], -1, -1)
        x = torch.cat([cls.to(x.dtype), x], dim=1)  # (B, 1 + K, D)
        for block in vit.blocks:
            x = block(x)
        return vit.norm(x)

    def decode(self, tokens: Tensor, keep: Tensor, hidden: Tensor) -> Tensor:
        """Encoder tokens (B, 1 + K, D) -> predicted pixels of the hidden patches (B, N - K, P).

        The decoder's tokens stand in the order CLS, visible, hidden: attention does not mind the order, and
        the hidden ones can be cut off at the end without a gather.
        """
        x = self.decoder_embed(tokens)  # (B, 1 + K, d)
        position = self.decoder_pos[0]
        x = torch.cat(
            [
                x[:, :1] + position[:1],
                x[:, 1:] + position[1:][keep],
                self.mask_token + position[1:][hidden],
            ],
            dim=1,
        )  # (B, 1 + N, d)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1 + keep.shape[1] :]))

    def forward(
        self, images: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised images (B, 3, H, W) -> loss, pred (B, N - K, P), mask (B, N), True where hidden.

        `pred` holds each hidden patch in the units of its own mean and deviation, in the order of the places
        where `mask` is True. The mask is drawn on the CPU so that every device hides the same patches.
        """
        noise = torch.rand(images.shape[0], self.patches, generator=generator).to(images.device)
        order = noise.argsort(dim=1)
        # sorted, so that `pred` follows the mask's order
        keep = order[:, : self.visible].sort(dim=1).values  # (B, K)
        hidden = order[:, self.visible :].sort(dim=1).values  # (B, N - K)
        patches = patchify(images, self.vit.spec.patch_size)  # (B, N, P)
        pred = self.decode(self.encode_visible(patches, keep), keep, hidden)
        target = take(patches, hidden)
        var, mean = torch.var_mean(target, dim=-1, keepdim=True)
        target = (target - mean) / (var + 1e-6).sqrt()
        loss = F.mse_loss(pred.float(), target)
        mask = torch.ones_like(noise, dtype=torch.bool).scatter(1, keep, False)
        return loss, pred, mask

    @torch.no_grad()
    def picture(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(masked, reconstruction), both like the images (B, 3, H, W); hidden patches are 0 or predicted."""
        patch = self.vit.spec.patch_size
        _, pred, mask = self(images, generator)
        patches = patchify(images, patch)
        hidden = patches[mask].view(pred.shape)
        var, mean = torch.var_mean(hidden, dim=-1, keepdim=True)
        filled = patches.clone()
        filled[mask] = (pred.float() * (var + 1e-6).sqrt() + mean).flatten(0, 1)
        return unpatchify(patches * ~mask[..., None], patch), unpatchify(filled, patch)
