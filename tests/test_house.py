"""The structure that docs/architecture.md describes: layers, no import cycle, a core without the simulator, limited sizes."""

import subprocess
import sys
import tomllib
from functools import cache

from docs.house import (
    FACADES,
    LAYER,
    ROOT,
    SIMULATED,
    TOPS,
    cycles,
    drawing,
    functions,
    graph,
    import_chain,
    in_own_process,
    limits,
    loaded,
    modules,
    package_of,
    sizes,
)

MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
# Where arm and stand-in are put together: the only modules outside the emulator that may name it.
COMPOSES = {"s2robot.deployment.emulate"}
# Modules that are of no use without the simulated world. Everything else imports without the extra `sim`.
DRAWS = {
    "s2robot.envs.cube_picker",
    "s2robot.envs.cube_pick",
    "s2robot.envs.experts.expert",
    "s2robot.envs.experts.worlds",
    "s2robot.envs.real.emulator.scene",
    "s2robot.envs.meshes",
    "s2robot.envs.renderer",
    "s2robot.envs.mujoco_task",
    "s2robot.envs.robosuite_task",
    "s2robot.envs.object_scenes",
    "s2robot.envs.world",
    "s2robot.probing.frames",
    "s2robot.probing.readout",
}
# Modules whose classes derive from those of an extra; the module that imports them asks for it first.
DERIVES = {"s2robot.vlm.tower"}
# Packages that the light core does without (extras, or what only tests and examples need).
EXTRAS = SIMULATED | {
    "xarm",
    "franky",
    "pyrealsense2",
    "pyspacemouse",
    "ray",
    "submitit",
    "transformers",
    "cv2",
    "av",
    "h5py",
    "pyarrow",
}

FOUND = modules()


@cache
def imported() -> dict[str, list]:
    """What each module imports: not looked up where these tests are collected only."""
    return in_own_process(graph, FOUND)


def ours(module: str) -> list:
    """A module's imports from this package, without its facade."""
    return [i for i in imported()[module] if i.name in FOUND and i.name not in FACADES and i.name != module]


def test_pyproject_lists_the_folders_that_hold_code():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {
        module if file.name == "__init__.py" else module.rpartition(".")[0] for module, file in FOUND.items()
    }
    assert sorted(listed["packages"]) == sorted(folders)
    assert listed["package-dir"] == {f"s2robot.{top}": top for top in TOPS}
    for top in TOPS:
        assert (ROOT / "s2robot" / top).readlink().as_posix() == f"../{top}"


def test_every_folder_with_code_is_a_package():
    bare = {f.parent for f in FOUND.values() if not (f.parent / "__init__.py").exists()}
    assert not bare, sorted(bare)


def test_every_package_has_a_layer_and_every_layer_a_package():
    assert {package_of(module) for module in FOUND if module not in FACADES} == set(LAYER)


def test_the_diagram_is_up_to_date():
    drawn = (ROOT / "docs/images/house.svg").read_text(encoding="utf-8")
    assert drawn == drawing(), "docs/images/house.svg is outdated: python docs/house.py"


def test_no_import_upward_or_sideways():
    wrong = [
        f"{i.at}: {package_of(module)} imports {i.name}"
        for module in set(FOUND) - set(FACADES)
        for i in ours(module)
        if package_of(module) != package_of(i.name) and LAYER[package_of(module)] <= LAYER[package_of(i.name)]
    ]
    assert not wrong, wrong


def test_demos_import_envs_and_core_only():
    wrong = [
        i.at
        for module in FOUND
        if module.startswith("s2robot.demos")
        for i in ours(module)
        if package_of(i.name) not in ("demos", "envs", "core")
    ]
    assert not wrong, wrong


def test_doors_open_a_room_each_and_nobody_leans_on_them():
    assert {i.name for i in imported()["s2robot"] if i.name.startswith("s2robot")} == {
        "s2robot.loading",
        "s2robot.s2.module",
    }
    assert all(i.lazy or i.typing for i in imported()["s2robot"] if i.name.startswith("s2robot"))


def test_no_circle_between_rooms():
    found = cycles({module: {i.name for i in ours(module)} for module in FOUND})
    assert not found, found


def test_no_room_is_imported_by_its_top_folder_or_relatively():
    wrong = [
        i.at
        for module in FOUND
        for i in imported()[module]
        if i.name.split(".")[0] in ("", *TOPS, "tests", "benchmarks")
    ]
    assert not wrong, wrong


def test_product_code_imports_no_stand_in():
    wrong = [
        i.at
        for module in FOUND
        for i in ours(module)
        if ".real.emulator" in i.name and ".real.emulator" not in module and module not in COMPOSES
    ]
    assert not wrong, wrong


def test_light_rooms_load_no_simulator():
    asked = {module: loaded(module, imported()) for module in set(FOUND) - DRAWS}
    heavy = {
        import_chain(n, names) for names in asked.values() for n in names if n.split(".")[0] in SIMULATED
    }
    assert not heavy, sorted(heavy)
    idle = [
        module for module in DRAWS if not SIMULATED & {n.split(".")[0] for n in loaded(module, imported())}
    ]
    assert not idle, f"light by now: {idle}"


def test_rooms_of_an_extra_are_imported_in_functions_alone():
    eager = [i.at for module in FOUND for i in ours(module) if i.name in DERIVES and not (i.lazy or i.typing)]
    assert not eager, eager


def test_light_rooms_import_where_no_extra_is_installed():
    light = set(FOUND) - DRAWS - DERIVES - {module for module in FOUND if module.endswith("__main__")}
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(EXTRAS)!r}: sys.modules[name] = None\n"  # importing it raises ModuleNotFoundError
        f"for module in {sorted(light)!r}:\n"
        "    importlib.import_module(module)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_functions_fit_a_screen_and_files_have_one_job():
    sizes = in_own_process(functions, FOUND)
    long = {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION_LINES}
    for path in FOUND.values():
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MAX_FILE_LINES:
            long[path.relative_to(ROOT).as_posix()] = lines
    assert not long, long


def test_every_size_is_within_its_budget():
    most = limits()
    over = {name: f"{size} of {most[name]}" for name, size in sizes().items() if size > most[name]}
    assert not over, over


def test_tests_mirror_the_folders():
    folders = {f.parent.relative_to(ROOT / "tests") for f in (ROOT / "tests").rglob("test_*.py")}
    missing = sorted(str(folder) for folder in folders if not (ROOT / folder).is_dir())
    assert not missing, missing
