"""The structure in docs/architecture.md: layers, no import cycle, a core without the simulator, limited sizes."""

import subprocess
import sys
import tomllib
from functools import cache

from docs import house
from docs.house import FACADES, LAYER, ROOT, SIMULATED, TOPS, import_chain, in_own_process, loaded, package_of

MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 400
# Modules that need the simulator. Every other module imports without the extra `sim`.
SIMULATING = {
    "s2robot.envs.cube_picker", "s2robot.envs.cube_pick", "s2robot.envs.experts.expert", "s2robot.envs.experts.worlds",
    "s2robot.envs.real.arms.model", "s2robot.envs.real.emulator.scene", "s2robot.envs.real.simulated",
    "s2robot.envs.meshes", "s2robot.envs.renderer", "s2robot.envs.mujoco_task",
    "s2robot.envs.robosuite_task", "s2robot.envs.object_scenes", "s2robot.envs.world", "s2robot.probing.frames",
    "s2robot.probing.readout",
}  # fmt: skip
# Modules with classes derived from an extra's; the importing module checks for the extra first.
DERIVED = {"s2robot.vlm.tower"}
# Packages that the light core does not need: extras, or used only by tests and examples.
EXTRAS = SIMULATED | {
    "xarm", "franky", "pyrealsense2", "pyspacemouse", "ray", "submitit", "transformers", "cv2", "av", "h5py", "pyarrow",
}  # fmt: skip

MODULES = house.modules()


@cache
def imported() -> dict[str, list]:
    """Return the imports of each module, computed only when a test runs."""
    return in_own_process(house.graph, MODULES)


def internal_imports(module: str) -> list:
    """Return a module's imports from this package, except from its facade."""
    return [i for i in imported()[module] if i.name in MODULES and i.name not in FACADES and i.name != module]


def imports_where(is_wrong) -> list[str]:
    """List the imports within the package for which `is_wrong(module, import)` is true."""
    return [i.at for module in MODULES for i in internal_imports(module) if is_wrong(module, i)]


def test_pyproject_lists_the_folders_that_contain_code():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {n if file.name == "__init__.py" else n.rpartition(".")[0] for n, file in MODULES.items()}
    assert sorted(listed["packages"]) == sorted(folders)
    assert all((file.parent / "__init__.py").exists() for file in MODULES.values())
    assert listed["package-dir"] == {f"s2robot.{top}": top for top in TOPS}
    for top in TOPS:
        assert (ROOT / "s2robot" / top).readlink().as_posix() == f"../{top}"


def test_diagram_is_up_to_date():
    drawn = (ROOT / "docs/images/house.svg").read_text(encoding="utf-8")
    assert drawn == house.drawing(), "docs/images/house.svg is outdated: python docs/house.py"


def test_packages_import_only_from_lower_layers_without_cycles():
    assert not house.cycles({module: {i.name for i in internal_imports(module)} for module in MODULES})
    assert {package_of(module) for module in MODULES if module not in FACADES} == set(LAYER)

    def is_wrong(module, i):
        if module in FACADES:
            return False
        source, target = package_of(module), package_of(i.name)
        return source != target and LAYER[source] <= LAYER[target]

    assert not imports_where(is_wrong)


def test_facade_imports_its_two_modules_lazily():
    own = [i for i in imported()["s2robot"] if i.name.startswith("s2robot")]
    assert {i.name for i in own} == {"s2robot.loading", "s2robot.s2.module"}
    assert all(i.lazy or i.typing for i in own)


def test_no_import_is_relative_or_by_top_level_folder():
    banned = ("", *TOPS, "tests", "benchmarks")
    assert not [i.at for imports in imported().values() for i in imports if i.name.split(".")[0] in banned]


def test_light_modules_load_no_simulator():
    loads = {module: loaded(module, imported()) for module in MODULES}
    heavy = {module: [n for n in names if n.split(".")[0] in SIMULATED] for module, names in loads.items()}
    chains = {import_chain(n, loads[module]) for module in set(MODULES) - SIMULATING for n in heavy[module]}
    assert not chains, sorted(chains)
    assert all(heavy[m] for m in SIMULATING), f"now light: {[m for m in SIMULATING if not heavy[m]]}"


def test_no_import_of_demos_of_the_emulator_or_of_an_extra_is_out_of_place():
    below, emulator = ("demos", "envs", "core"), ".real.emulator"
    assert not imports_where(lambda m, i: m.startswith("s2robot.demos") and package_of(i.name) not in below)
    assert not imports_where(lambda m, i: emulator in i.name and emulator not in m)
    assert not imports_where(lambda m, i: i.name in DERIVED and not (i.lazy or i.typing))


def test_light_modules_import_without_any_extra():
    light = {module for module in MODULES if not module.endswith("__main__")} - SIMULATING - DERIVED
    script = (
        "import importlib, sys\n"
        f"for name in {sorted(EXTRAS)!r}: sys.modules[name] = None\n"  # importing it raises ModuleNotFoundError
        f"for module in {sorted(light)!r}: importlib.import_module(module)\n"
    )
    options = {"capture_output": True, "text": True, "timeout": 300, "cwd": ROOT}
    done = subprocess.run([sys.executable, "-c", script], **options)
    assert done.returncode == 0, done.stderr[-2000:]


def test_functions_files_and_packages_stay_within_their_limits():
    sizes = in_own_process(house.functions, MODULES)
    long = {name: lines for name, lines in sizes.items() if lines > MAX_FUNCTION_LINES}
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    long |= {path: lines for path, lines in files.items() if lines > MAX_FILE_LINES}
    assert not long, long
    limits = house.limits()
    assert not [(name, size, limits[name]) for name, size in house.sizes().items() if size > limits[name]]
