"""The wheel, built and installed outside the clone: it must bring configs, demos and weights along."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("s2robot", "envs", "demos", "policies", "configs")
DATA = {"configs": ("**/*.yaml",), "demos": ("data/**/*",), "s2robot": ("weights/mvp-tiny*.safetensors",)}

pytestmark = pytest.mark.slow


def run(*command: object, **options) -> str:
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=600, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")  # a build leaves files behind: not in the clone
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def site(wheel, tmp_path_factory) -> Path:
    site = tmp_path_factory.mktemp("site")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    return site


def outside(site: Path) -> dict[str, str]:
    """An environment whose Python finds the installed wheel before anything else."""
    return os.environ | {"PYTHONPATH": str(site)}


def test_wheel_holds_every_data_file_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, patterns in DATA.items():
        for pattern in patterns:
            files = [f for f in (ROOT / package).glob(pattern) if f.is_file()]
            assert files, f"{package}/{pattern}: nothing ships"
            missing = {f.relative_to(ROOT).as_posix() for f in files} - names
            assert not missing, sorted(missing)[:5]
    assert not any("mvp-small" in name and name.endswith(".safetensors") for name in names)
    assert wheel.stat().st_size < 12e6, wheel.stat().st_size
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == set(PACKAGES)


def test_installed_paths_lead_into_the_wheel(site, tmp_path):
    script = (
        "import s2robot.envs, s2robot.demos, s2robot.policies; from s2robot.common import paths;"
        "print(paths.configs_dir() / 'run.yaml', paths.shipped_demos('xarm7_cube'),"
        " paths.shipped_weights('mvp-tiny'), sep='\\n')"
    )
    found = run(sys.executable, "-c", script, env=outside(site), cwd=tmp_path).split()
    assert len(found) == 3
    for path in map(Path, found):
        assert path.is_relative_to(site) and path.exists()


def test_installed_demos_open_and_weights_load(site, tmp_path):
    script = (
        "from s2robot.demos.store import EpisodeStore; from s2robot.common import paths;"
        "from s2robot.encoders.encoder import build_encoder;"
        "print(len(EpisodeStore.open(paths.shipped_demos('xarm7_cube'))));"
        "print(build_encoder({'name': 'mvp-tiny'}).dim)"
    )
    episodes, dim = map(int, run(sys.executable, "-c", script, env=outside(site), cwd=tmp_path).split())
    assert episodes >= 120 and dim > 0


def test_console_command_composes_outside_the_clone(site, tmp_path):
    command = site / "bin" / "s2robot"
    assert "evaluate" in run(sys.executable, command, env=outside(site), cwd=tmp_path)
    config = run(
        sys.executable, command, "run", "--cfg", "job", "policy=rpt", env=outside(site), cwd=tmp_path
    )
    assert "xarm7_cube" in config and "context: 16" in config
