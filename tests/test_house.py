"""The structure that docs/architecture.md describes: layers, no import cycle, a core without the simulator, limited sizes."""

import subprocess
import sys
import tomllib
from functools import cache

from docs import house
from docs.house import FACADES, LAYER, ROOT, SIMULATED, TOPS, import_chain, in_own_process, loaded, package_of

MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
# Modules that are of no use without the simulated world. Everything else imports without the extra `sim`.
DRAWS = {
    "s2robot.envs.cube_picker", "s2robot.envs.cube_pick", "s2robot.envs.experts.expert", "s2robot.envs.experts.worlds",
    "s2robot.envs.real.arms.model", "s2robot.envs.real.emulator.scene", "s2robot.envs.real.simulated",
    "s2robot.envs.meshes", "s2robot.envs.renderer", "s2robot.envs.mujoco_task",
    "s2robot.envs.robosuite_task", "s2robot.envs.object_scenes", "s2robot.envs.world", "s2robot.probing.frames",
    "s2robot.probing.readout",
}  # fmt: skip
# Modules whose classes derive from those of an extra; the module that imports them asks for it first.
DERIVES = {"s2robot.vlm.tower"}
# Packages that the light core does without (extras, or what only tests and examples need).
EXTRAS = SIMULATED | {
    "xarm", "franky", "pyrealsense2", "pyspacemouse", "ray", "submitit", "transformers", "cv2", "av", "h5py", "pyarrow",
}  # fmt: skip

FOUND = house.modules()


@cache
def imported() -> dict[str, list]:
    """What each module imports: not looked up where these tests are collected only."""
    return in_own_process(house.graph, FOUND)


def ours(module: str) -> list:
    """A module's imports from this package, without its facade."""
    return [i for i in imported()[module] if i.name in FOUND and i.name not in FACADES and i.name != module]


def imports_that(wrong) -> list[str]:
    """Where a module of the package imports another of it, for which `wrong(module, import)` is true."""
    return [i.at for module in FOUND for i in ours(module) if wrong(module, i)]


def test_pyproject_lists_the_folders_that_hold_code():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        name if file.name == "__init__.py" else name.rpartition(".")[0] for name, file in FOUND.items()
    }
    assert sorted(listed["packages"]) == sorted(folders)
    assert all((file.parent / "__init__.py").exists() for file in FOUND.values())
    assert listed["package-dir"] == {f"s2robot.{top}": top for top in TOPS}
    for top in TOPS:
        assert (ROOT / "s2robot" / top).readlink().as_posix() == f"../{top}"


def test_every_package_has_a_layer_and_every_layer_a_package():
    assert {package_of(module) for module in FOUND if module not in FACADES} == set(LAYER)


def test_the_diagram_is_up_to_date():
    drawn = (ROOT / "docs/images/house.svg").read_text(encoding="utf-8")
    assert drawn == house.drawing(), "docs/images/house.svg is outdated: python docs/house.py"


def test_no_import_upward_or_sideways():
    def wrong(module, i):
        if module in FACADES:
            return False
        ours, theirs = package_of(module), package_of(i.name)
        return ours != theirs and LAYER[ours] <= LAYER[theirs]

    assert not imports_that(wrong)


def test_demos_import_envs_and_core_only():
    below = ("demos", "envs", "core")
    assert not imports_that(lambda m, i: m.startswith("s2robot.demos") and package_of(i.name) not in below)


def test_the_facade_imports_two_modules_when_they_are_used():
    own = [i for i in imported()["s2robot"] if i.name.startswith("s2robot")]
    assert {i.name for i in own} == {"s2robot.loading", "s2robot.s2.module"}
    assert all(i.lazy or i.typing for i in own)


def test_no_import_cycle():
    assert not house.cycles({module: {i.name for i in ours(module)} for module in FOUND})


def test_no_module_is_imported_by_its_top_folder_or_relatively():
    wrong = ("", *TOPS, "tests", "benchmarks")
    assert not [i.at for found in imported().values() for i in found if i.name.split(".")[0] in wrong]


def test_product_code_imports_no_emulator():
    inside = ".real.emulator"
    assert not imports_that(lambda m, i: inside in i.name and inside not in m)


def test_light_modules_load_no_simulator():
    loads = {module: loaded(module, imported()) for module in FOUND}
    heavy = {module: [n for n in names if n.split(".")[0] in SIMULATED] for module, names in loads.items()}
    wrong = {import_chain(n, loads[module]) for module in set(FOUND) - DRAWS for n in heavy[module]}
    assert not wrong, sorted(wrong)
    assert all(heavy[module] for module in DRAWS), f"light by now: {[m for m in DRAWS if not heavy[m]]}"


def test_modules_of_an_extra_are_imported_in_functions_alone():
    assert not imports_that(lambda m, i: i.name in DERIVES and not (i.lazy or i.typing))


def test_light_modules_import_where_no_extra_is_installed():
    light = set(FOUND) - DRAWS - DERIVES - {module for module in FOUND if module.endswith("__main__")}
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(EXTRAS)!r}: sys.modules[name] = None\n"  # importing it raises ModuleNotFoundError
        f"for module in {sorted(light)!r}: importlib.import_module(module)\n"
    )
    how = {"capture_output": True, "text": True, "timeout": 300, "cwd": ROOT}
    done = subprocess.run([sys.executable, "-c", script], **how)
    assert done.returncode == 0, done.stderr[-2000:]


def test_functions_fit_a_screen_and_files_have_one_job():
    sizes = in_own_process(house.functions, FOUND)
    long = {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION_LINES}
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FOUND.values()}
    long |= {path: lines for path, lines in files.items() if lines > MAX_FILE_LINES}
    assert not long, long


def test_every_size_is_within_its_budget():
    most = house.limits()
    over = {name: f"{size} of {most[name]}" for name, size in house.sizes().items() if size > most[name]}
    assert not over, over


def test_tests_mirror_the_folders():
    folders = {f.parent.relative_to(ROOT / "tests") for f in (ROOT / "tests").rglob("test_*.py")}
    missing = sorted(str(folder) for folder in folders if not (ROOT / folder).is_dir())
    assert not missing, missing
