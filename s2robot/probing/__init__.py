"""`s2robot probe`: what frozen features hold, how scores grow with cost, and what models memorize."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def run_probe(cfg: "DictConfig") -> None:
    """Run the probe that `probe=<kind>` chooses; write its files and print its tables."""
    from s2robot.core.settings import plain
    from s2robot.probing.report import write_outcome

    start, out, node = time.monotonic(), Path(cfg.run_dir), plain(cfg.probe)
    kind = node.pop("kind")
    measure = _on_frames if kind in ("readout", "information") else _on_images
    print(write_outcome(measure(kind, node, cfg), time.monotonic() - start, out))
    print(f"{kind}: {out / kind}.html, .json, .csv, .png")


def _on_frames(kind: str, node: dict[str, Any], cfg: "DictConfig") -> Any:
    from s2robot.config import task_settings
    from s2robot.core.settings import read
    from s2robot.encoders.build import build_encoder
    from s2robot.envs.gl import require_simulator

    require_simulator()
    from s2robot.probing.frames import FrameSettings
    from s2robot.probing.readout import information, readout

    described = node.pop("encoders" if kind == "readout" else "sources")
    target, upper = node.pop("target", None), node.pop("upper", None)
    settings = read(FrameSettings, node, "probe").replace(world=task_settings(cfg))
    encoders = {name: build_encoder(facts) for name, facts in described.items()}
    if kind == "readout":
        return readout(encoders, settings)
    return information(build_encoder(target), encoders, upper, settings)


def _on_images(kind: str, node: dict[str, Any], cfg: "DictConfig") -> Any:
    from s2robot.core.settings import read
    from s2robot.pretraining.render import ObjectsSettings
    from s2robot.probing.heads import ScalingSettings
    from s2robot.probing.memorize import MemorizeSettings, memorize
    from s2robot.probing.scaling import scaling

    objects, out = read(ObjectsSettings, cfg.objects, "objects"), Path(cfg.run_dir)
    if kind == "memorize":
        return memorize(read(MemorizeSettings, node, "probe"), objects, out)
    models = node.pop("models")
    return scaling(models, read(ScalingSettings, node, "probe"), objects, out)
