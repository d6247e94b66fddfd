"""`s2robot probe`: measure the information in frozen features, scores against cost, and memorization."""

import time
from pathlib import Path

from omegaconf import DictConfig

from s2robot.config import task_settings
from s2robot.core.settings import plain, read
from s2robot.encoders.build import build_encoder
from s2robot.envs.gl import require_simulator
from s2robot.pretraining.render import ObjectsSettings
from s2robot.probing.heads import ScalingSettings
from s2robot.probing.memorize import MemorizeSettings
from s2robot.probing.memorize import memorize as measure_memory
from s2robot.probing.report import Outcome, write_outcome
from s2robot.probing.scaling import scaling as measure_scaling


def run_probe(cfg: DictConfig) -> None:
    """Run the probe selected by `probe=<kind>`; write its files and print its tables."""
    start, out = time.monotonic(), Path(cfg.run_dir)
    print(write_outcome(_measure(cfg, out), time.monotonic() - start, out))
    print(f"{cfg.probe.kind}: {out / cfg.probe.kind}.html, .json, .csv, .png")


def _measure(cfg: DictConfig, out: Path) -> Outcome:
    node = plain(cfg.probe)
    kind = node.pop("kind")
    if kind in ("scaling", "memorize"):
        objects = read(ObjectsSettings, cfg.objects, "objects")
        if kind == "memorize":
            return measure_memory(read(MemorizeSettings, node, "probe"), objects, out)
        return measure_scaling(node.pop("models"), read(ScalingSettings, node, "probe"), objects, out)
    require_simulator()
    from s2robot.probing.readout import FrameSettings, information, readout

    described = node.pop("encoders" if kind == "readout" else "sources")
    target, upper = node.pop("target", None), node.pop("upper", None)
    settings = read(FrameSettings, node, "probe").replace(world=task_settings(cfg))
    encoders = {name: build_encoder(facts) for name, facts in described.items()}
    if kind == "readout":
        return readout(encoders, settings)
    return information(build_encoder(target), encoders, upper, settings)
