"""S² on a torchvision CNN: maps for a detector's neck, and the same model trained through S².

python examples/s2_torchvision.py --model resnet50
"""

import argparse

import torch
import torchvision

from s2robot import S2


def main(argv: list[str] | None = None) -> tuple[torch.Tensor, float]:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="resnet18", help="any of torchvision.models.list_models()")
    parser.add_argument("--size", type=int, default=448, help="side of the images in pixels")
    args = parser.parse_args(argv)
    frames = torch.randint(0, 256, (2, args.size, args.size, 3), dtype=torch.uint8)

    model = torchvision.models.get_model(args.model)
    # Not frozen: the gradient of a linear classifier on pooled S² features reaches the model.
    pooled = S2(model, output="pooled", frozen=False)
    head = torch.nn.LazyLinear(10)
    loss = torch.nn.functional.cross_entropy(head(pooled(frames)), torch.tensor([3, 7]))
    loss.backward()
    grad_norm = sum(float(p.grad.norm()) for p in model.parameters() if p.grad is not None)
    print(f"loss {loss.item():.3f}, gradient norm of the model {grad_norm:.3g}")

    maps = S2(model, output="map")(frames)  # (B, 2 * channels, rows, columns)
    print(f"map {tuple(maps.shape)}")
    return maps, grad_norm


if __name__ == "__main__":
    main()
