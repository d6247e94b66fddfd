"""`s2robot doctor`: what this machine has, what is missing for which use, and whether a checkpoint acts here as it did."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import DictConfig

from s2robot.core.errors import UserError
from s2robot.core.files import cache_dir, shipped_demos
from s2robot.core.provenance import versions
from s2robot.core.settings import read
from s2robot.envs.errors import EnvError
from s2robot.envs.gl import SIMULATOR, choose_gl
from s2robot.loading import device_of, load_networks

# extra -> a module that it brings, and what needs it
EXTRAS = {
    "sim": (SIMULATOR[0], "record, evaluate, compare"),
    "data": ("pyarrow", "datasets of LeRobot, robomimic and diffusion_policy"),
    "xarm": ("xarm", "UFACTORY arms and the rehearsal"),
    "franka": ("franky", "Franka arms"),
    "opencv": ("cv2", "USB cameras"),
    "realsense": ("pyrealsense2", "RealSense cameras"),
    "vlm": ("transformers", "S² in a Llava"),
    "ray": ("ray", "engine=ray"),
}
_LEAST_GB = 5.0  # free disk for features and runs of the default job


class Check(NamedTuple):
    name: str
    good: bool
    text: str
    needed: bool = True  # else it is only said


def doctor(cfg: DictConfig) -> int:
    """Print a line for each check; exit code 1 if one that is needed fails."""
    checkpoint = read(str | None, cfg.checkpoint, "checkpoint")  # type: ignore[arg-type]
    checks = [*machine(), *extras()]
    if checkpoint:
        checks.append(tried("checkpoint", lambda: acts(Path(checkpoint), read(str, cfg.device, "device"))))
    for check in checks:
        mark = "ok  " if check.good else "FAIL" if check.needed else "-   "
        print(f"{mark}  {check.name:<14}{check.text}")
    return int(any(check.needed and not check.good for check in checks))


def tried(name: str, look: Callable[[], str], needed: bool = True) -> Check:
    try:
        return Check(name, True, look(), needed)
    except (UserError, EnvError, OSError) as error:
        return Check(name, False, str(error), needed)


def machine() -> Iterator[Check]:
    yield Check("versions", True, ", ".join(f"{name} {found}" for name, found in versions().items()))
    yield from pins()
    yield Check("processor", True, f"{os.cpu_count()} cores")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    text = ", ".join(gpus) or "none that torch finds; everything runs on the processor"
    yield Check("gpu", bool(gpus), text, needed=False)
    free = shutil.disk_usage(cache_dir()).free / 1e9
    yield Check(
        "cache", free >= _LEAST_GB and os.access(cache_dir(), os.W_OK), f"{cache_dir()}, {free:.0f} GB free"
    )
    demos = shipped_demos("any").parent
    yield Check("demos", any(demos.glob("*.zarr")), f"shipped in {demos}")
    yield tried("drawing", drawn, needed=find_spec(SIMULATOR[0]) is not None)


def drawn() -> str:
    """Draw nothing on OpenGL and say by what."""
    name = choose_gl()
    from s2robot.envs.renderer import opengl  # MuJoCo with it

    return f"MUJOCO_GL={name}: {opengl()}"


def pins() -> Iterator[Check]:
    """Installed packages that do not satisfy this package's own pins."""
    from packaging.requirements import Requirement

    for text in requires("s2robot") or ():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate({"extra": "sim"}):
            try:
                found = version(wanted.name)
            except PackageNotFoundError:
                continue  # an extra, which has its own line
            if not wanted.specifier.contains(found, prereleases=True):
                yield Check(wanted.name, False, f"expected {wanted.specifier}, got {found}")


def extras() -> Iterator[Check]:
    for extra, (module, use) in EXTRAS.items():
        there = find_spec(module) is not None
        yield Check(extra, there, use if there else f"pip install 's2robot[{extra}]' for {use}", needed=False)


def acts(checkpoint: Path, device: str) -> str:
    """Load a checkpoint, which replays its golden trace."""
    _, encoder, contract = load_networks(checkpoint, device_of(device))
    traced = (checkpoint / "golden.safetensors").is_file()
    trace: Any = "its golden trace holds" if traced else "it has no golden trace"
    return f"{checkpoint}: {contract['robot']}, {encoder.name}; {trace}"
