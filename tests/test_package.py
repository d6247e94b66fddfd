"""The wheel, built from the sdist and installed outside the clone: it contains configs, demos and weights, and it
coexists with a user's own packages of the same names."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOPS = ("envs", "demos", "policies", "configs")
SHIPPED = (
    "configs/**/*.yaml", "demos/data/**/*", "s2robot/weights/mvp-tiny*.safetensors", "s2robot/reporting/templates/*",
    "s2robot/py.typed",
)  # fmt: skip
# a program of a user's project that runs a command in its own process
PROGRAM = """
import runpy, sys
import configs, demos, envs, policies, tests
assert all(m.MINE == m.__name__ for m in (configs, demos, envs, policies, tests))
from s2robot.core import files
from s2robot.demos.store import EpisodeStore
from s2robot.encoders import build_encoder
assert len(EpisodeStore.open(files.shipped_demos("xarm7_cube"))) == 120
assert build_encoder({"name": "mvp-tiny"}).dim == 384
places = (m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "s2robot")
print(*{p.split("/s2robot/")[0] for p in places if p}, files.configs_dir(), sep="\\n")
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*command: object, **options) -> str:
    """The output of a command that must succeed."""
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=900, **options)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build from an sdist of a copy of the clone, like a release: a build leaves files behind."""
    source = tmp_path_factory.mktemp("source") / "s2robot"
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("s2robot", *TOPS):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    assert len(list(out.glob("s2robot-*.tar.gz"))) == 1
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> Path:
    """The interpreter of an environment with the wheel; its dependencies come from the current environment.

    A path in a .pth file adds packages, but not the clone's editable install.
    """
    folder = tmp_path_factory.mktemp("venv") / "v"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install"]
    run(*pip, "--quiet", "--no-deps", "--no-index", "--no-compile", wheel, env=isolated())
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def isolated(**extra: str) -> dict[str, str]:
    """Return this process's environment without the paths into the clone."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")} | extra


def test_wheel_contains_every_data_file_and_only_the_s2robot_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        top_level = next(name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).split() == [b"s2robot"]
    for pattern in SHIPPED:
        files = [f.relative_to(ROOT) for f in ROOT.glob(pattern) if f.is_file()]
        assert files, f"{pattern}: nothing ships"
        inside = {f"s2robot/{f}" if f.parts[0] in TOPS else str(f) for f in files}
        assert inside <= names, sorted(inside - names)[:5]
    assert not any("mvp-small" in name and name.endswith(".safetensors") for name in names)
    assert not any(name.endswith(".pyc") or "/tests/" in name for name in names)
    assert wheel.stat().st_size < 12.5e6, wheel.stat().st_size
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"s2robot"}


def test_library_and_verbs_work_beside_user_packages(python, recorded, tiny_encoder, tmp_path):
    for name in (*TOPS, "tests"):  # a user's packages have the same names as our top-level folders
        (project := tmp_path / "project").joinpath(name).mkdir(parents=True)
        (project / name / "__init__.py").write_text(f"MINE = '{name}'\n")
    (project / "own.py").write_text(PROGRAM)
    env = isolated(S2ROBOT_CACHE=str(tmp_path / "cache"), OMP_NUM_THREADS="1")
    words = [f"demos.path={recorded}", f"encoder.checkpoint={tiny_encoder}", "env.cameras=[hand]"]
    words += ["demos.episodes=1", "features.workers=1"]  # a worker imports the simulator
    output = run(python, "own.py", python.with_name("s2robot"), "encode", *words, cwd=project, env=env)
    site, configs, *log = output.splitlines()
    assert Path(site).is_relative_to(python.parents[1]) and Path(configs) == Path(site) / "s2robot/configs"
    assert any("features (" in line for line in log)


def test_core_requires_no_simulator():
    required = [line for line in distribution("s2robot").requires or [] if "extra ==" not in line]
    simulator = [line for line in required if line.startswith(("robosuite", "mujoco", "mink", "qpsolvers"))]
    assert required and not simulator, simulator


@pytest.mark.slow
def test_light_core_works_with_newest_numpy_and_no_simulator(wheel, tmp_path):
    """`pip install s2robot` in an empty environment: S2 doctests, own demos, a policy locally and through a server."""
    venv.create(tmp_path / "v", with_pip=True)
    python = tmp_path / "v/bin/python"
    run(python, "-m", "pip", "install", "--quiet", wheel, "transformers>=4.56")  # docs/s2.md shows its models
    script = "import numpy; from importlib.util import find_spec as found; print(numpy.__version__[0])\n"
    assert run(python, "-c", f"{script}assert not any(map(found, ('robosuite', 'mujoco', 'mink')))") >= "2"
    own, examples = ("demos.path=mine.zarr", "encoder=mvp-tiny"), ROOT / "examples"
    for words in (
        ("-m", "doctest", "-o", "ELLIPSIS", ROOT / "docs/s2.md"),
        (examples / "own_demos.py", "mine.zarr", "--size", 64),
        ("-m", "s2robot", "encode", *own),
        ("-m", "s2robot", "train", *own, "train.steps=2", "train.batch_size=16", "hydra.run.dir=run"),
        (examples / "act.py", "run/checkpoint"),
        (examples / "serve_and_call.py", "run/checkpoint", "--deadline", 60),
    ):
        run(python, *words, cwd=tmp_path, env=isolated(S2ROBOT_CACHE=str(tmp_path / "cache")))
