"""What S2 costs in the vision tower of a LLaVA-1.5: tokens, floating-point operations, memory. Nothing is computed.

    python benchmarks/vlm.py        # CLIP-L of 336 px, LLaVA-1.5-7B's projector, float16

Shapes and types go through the model without numbers (torch's fake tensors): the figures are exact everywhere. A multiplication
with its addition is two operations. Memory is the largest sum of tensors alive at once beside the weights, without what an
operation allocates inside itself.
"""

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava
from transformers.initialization import no_init_weights

from s2robot.vlm import s2_llava

TOWER = dict(num_attention_heads=16, patch_size=14, hidden_size=1024, intermediate_size=4096, image_size=336)
CASES = (((1,), None), ((1, 2), None), ((1, 2, 3), None), ((1, 2, 3), 1))  # scales, tiles at once


class Alive(TorchDispatchMode):
    """The most bytes that tensors made inside held at once: `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._held = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # views and parameters are not new
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        for storage in _storages(out):
            if storage._cdata not in given:
                self._held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._held.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def llava(attention: str) -> Llava:
    """A LLaVA-1.5-7B without numbers in its weights; its language model has one layer."""
    text = LlamaConfig(hidden_size=4096, num_hidden_layers=1, intermediate_size=64, vocab_size=64)
    tower = CLIPVisionConfig(**TOWER, num_hidden_layers=24)
    config = LlavaConfig(vision_config=tower, text_config=text, image_token_index=9)
    with no_init_weights():
        return Llava._from_config(config, dtype=torch.float16, attn_implementation=attention).eval()


def measure(scales: tuple[int, ...], at_once: int | None) -> dict[str, Any]:
    """Tokens, operations and memory of one picture through tower and projector."""
    side, flops = TOWER["image_size"] * scales[-1], 0
    for attention in ("eager", "sdpa"):  # only eager's products are counted; only sdpa is what one runs
        with FakeTensorMode(), torch.no_grad():
            model = s2_llava(llava(attention), scales, tiles_at_once=at_once)
            picture = torch.empty(1, 3, side, side, dtype=torch.float16)
            with FlopCounterMode(display=False) as counter, Alive() as alive:
                (tokens,) = model.model.get_image_features(picture).pooler_output
        flops = flops or counter.get_total_flops()
    projector = sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    return {
        "scales": ", ".join(str(scale * TOWER["image_size"]) for scale in scales),
        "tiles": model.model.vision_tower.layout.tiles,
        "at once": at_once or "all",
        "image tokens": tokens.shape[0],
        "channels": model.config.vision_config.hidden_size,
        "TFLOP": round(flops / 2e12, 2),  # multiply-adds, as everywhere
        "memory, MiB": round(alive.peak / 2**20),
        "projector, M": round(projector / 1e6, 1),
    }


def main() -> None:
    rows = [measure(*case) for case in CASES]
    for cells in [rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows)]:
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
