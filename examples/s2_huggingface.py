"""S² on a Hugging Face model, and the authors' function on the same model: the same features.

python examples/s2_huggingface.py --model facebook/dinov2-base      # downloads the weights
python examples/s2_huggingface.py                                    # a small random model, without a download
"""

import argparse

import torch
from transformers import AutoModel, ViTConfig, ViTModel

from s2robot import S2
from s2robot.s2 import forward


def main(argv: list[str] | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="a vision model on the hub, or a folder; default: a small random one")
    args = parser.parse_args(argv)
    small = ViTConfig(hidden_size=96, num_hidden_layers=2, num_attention_heads=3, intermediate_size=192)
    model = (AutoModel.from_pretrained(args.model) if args.model else ViTModel(small)).eval()
    frames = torch.randint(0, 256, (1, 224, 224, 3), dtype=torch.uint8)

    # Tile, patch, prefix, mean and std come from the model. A frame of the base size is enlarged, as in the paper; with
    # the camera's full resolution and without `resize`, the larger scale contains more detail.
    tokens = S2(model, resize="upsample")(frames)
    print(f"S2(model) {tuple(tokens.shape)}")

    # The authors' call: images are preprocessed manually, the model is a function from images to patch tokens.
    x = frames.permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
    x = (x - 0.5) / 0.5  # ViTModel's mean and std; other models differ
    with torch.no_grad():
        reference = forward(
            lambda image: model(image).last_hidden_state, x, img_sizes=[224, 448], num_prefix_token=1
        )
    print(f"forward(model, x) {tuple(reference.shape)}, prefix token first")
    return tokens, reference


if __name__ == "__main__":
    main()
