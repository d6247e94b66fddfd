"""Plant faults in the core, one at a time, and count those that the tests catch.

    python benchmarks/mutants.py                            # a sample of every module, by a fixed seed
    python benchmarks/mutants.py --each 40 windows pooling  # more, of some

The faults are Cosmic Ray's operators, planted in a copy of the repository. Its own runner starts a process a fault, which here
means to import torch and MuJoCo a thousand times: this one imports them once and forks. Not planted: in annotations, in `raise`,
and in `frozen=True` and `strict=True`. A test that fails, or takes ten times as long as usual, caught the fault.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONTROL, S2 = "tests/envs/real/control", "tests/s2robot/s2"
COMPARISON, TRAINING = "tests/s2robot/comparison", "tests/s2robot/training"
MODULES: dict[str, tuple[str, list[str]]] = {  # name -> file, its tests (those that are quick first)
    "tiling": ("s2robot/s2/tiling.py", [f"{S2}/test_reference.py", f"{S2}/test_module.py"]),
    "engine": ("s2robot/s2/engine.py", [f"{S2}/test_reference.py", f"{S2}/test_module.py"]),
    "reference": ("s2robot/s2/reference.py", [f"{S2}/test_reference.py"]),
    "windows": ("demos/windows.py", ["tests/demos/test_windows.py"]),
    "normalise": ("policies/normalise.py", ["tests/policies/test_normalise.py"]),
    "pooling": ("policies/pooling.py", ["tests/policies/test_pooling.py"]),
    "actor": ("policies/actor.py", ["tests/policies/test_actor.py", f"{TRAINING}/test_by_task.py"]),
    "loop": ("s2robot/training/loop.py", [f"{TRAINING}/test_loop.py", f"{TRAINING}/test_train.py"]),
    "paired": ("s2robot/comparison/paired.py", [f"{COMPARISON}/test_paired.py"]),
    "statistics": ("s2robot/comparison/statistics.py", [f"{COMPARISON}/test_statistics.py", f"{COMPARISON}/test_report.py"]),
    "safety": ("envs/real/control/safety.py", [f"{CONTROL}/test_safety.py", f"{CONTROL}/test_loop.py"]),
    "watchdog": ("envs/real/control/watchdog.py", [f"{CONTROL}/test_watchdog.py"]),
    "store": ("demos/store.py", ["tests/demos/test_store.py"]),
}  # fmt: skip
TIMES, LEAST = 10, 60.0  # of the usual time, and at least so many seconds, until a fault counts as a hang


def untouched(code: str) -> list[tuple[tuple, tuple]]:
    """Ranges of the file, as (line, column) pairs, in which nothing is planted."""
    out = []
    for node in ast.walk(ast.parse(code)):
        parts = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        guard = isinstance(node, ast.keyword) and node.arg in ("frozen", "strict")
        parts += [node] if guard or isinstance(node, ast.Raise) else []
        out += [((p.lineno, p.col_offset), (p.end_lineno, p.end_col_offset)) for p in parts if p is not None]
    return out


def faults(code: str) -> Iterator[tuple[tuple[int, int], str, str]]:
    """Every planted fault of a file: (line, column), operator, the code with it."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.operators.provider import OperatorProvider

    provider, skipped = OperatorProvider(), untouched(code)
    for name in (name for name in provider if not name.startswith("Variable")):  # those want names by hand
        operator = provider[name]()
        places = [place for node in ast_nodes(get_ast(code)) for place in operator.mutation_positions(node)]
        for n, (start, _) in enumerate(places):
            if any(low <= start < high for low, high in skipped):
                continue
            with suppress(AttributeError):  # it cannot replace an exception that has a dot in its name
                mutated = mutate_code(code, provider[name](), n)
                if mutated and mutated != code:
                    yield start, name, mutated


def sample(code: str, each: int, seed: int) -> list[tuple[tuple[int, int], str, str]]:
    """So many faults of a file, a place at most once; all for 0. The same for the same code and seed."""
    if not each:
        return list(faults(code))
    by_place: dict[tuple[int, int], list] = {}
    for fault in faults(code):
        by_place.setdefault(fault[0], []).append(fault)
    dice = random.Random(seed)
    places = dice.sample(sorted(by_place), min(each, len(by_place)))
    return [dice.choice(by_place[place]) for place in sorted(places)]


def tests_fail(tree: Path, tests: list[str], limit: float) -> tuple[bool, float]:
    """Whether the tests fail in a fork of this process, and the seconds that took; a hang is a failure."""
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # what a test started dies with it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1), os.dup2(null, 2)
        os.chdir(tree)
        sys.path[:0] = [str(tree)]
        os.environ["PYTHONPATH"] = str(tree)
        import pytest

        chosen = ["-m", "not slow and not gpu", "-p", "no:cacheprovider", "-x", "-q", "--no-header"]
        os._exit(int(pytest.main([*chosen, "--hypothesis-seed=0", *tests])))
    while time.monotonic() - start < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            return status != 0, time.monotonic() - start
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True, limit


def judge(tree: Path, name: str, each: int, seed: int) -> dict:
    """Plant a module's sample; its count, and the faults that no test caught."""
    file, tests = MODULES[name]
    path, survived = tree / file, []
    code = path.read_text(encoding="utf-8")
    failed, usual = tests_fail(tree, tests, 1800)
    if failed:
        raise SystemExit(f"{name}: its tests fail without any fault: {' '.join(tests)}")
    planted = sample(code, each, seed)
    for n, ((line, column), operator, mutated) in enumerate(planted, 1):
        path.write_text(mutated, encoding="utf-8")
        fell, seconds = tests_fail(tree, tests, max(LEAST, TIMES * usual))
        lines = zip(code.splitlines(), mutated.splitlines(), strict=False)
        change = next((f"{a.strip()} -> {b.strip()}" for a, b in lines if a != b), "")
        if not fell:
            survived.append({"line": line, "column": column, "operator": operator, "change": change})
        end = "caught" if fell else "SURVIVED"
        print(f"{name} {n}/{len(planted)} {end} {seconds:.1f} s  {file}:{line} {change}", flush=True)
    path.write_text(code, encoding="utf-8")
    caught = len(planted) - len(survived)
    return {"file": file, "planted": len(planted), "caught": caught, "survived": survived}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("modules", nargs="*", choices=[*MODULES, []], help="all if none is named")
    parser.add_argument("--each", type=int, default=20, help="faults a module; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--out", type=Path, default=Path("mutants.json"), help="added to what is there")
    args = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    os.environ.setdefault("MUJOCO_GL", "egl")  # as s2robot.envs chooses it, before mujoco is imported
    sys.dont_write_bytecode = True  # two faults within a second would share a .pyc
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() not in (ROOT, ROOT / "benchmarks")]

    import gymnasium, hypothesis, lightning_fabric, matplotlib, pytest, robosuite, scipy.stats, timm, torch, torchvision, zarr  # noqa: E401, F401, I001

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        skip = shutil.ignore_patterns(".git", ".venv", "runs", "site", "__pycache__", ".*_cache", "outputs")
        shutil.copytree(ROOT, tree, symlinks=True, ignore=skip)
        results = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        for name in args.modules or MODULES:
            results[name] = judge(tree, name, args.each, args.seed)
            args.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
    planted, caught = (sum(r[key] for r in results.values()) for key in ("planted", "caught"))
    for name, r in results.items():
        print(f"{name:<12} {r['caught']:4} of {r['planted']:4}  {r['file']}")
    print(f"caught {caught} of {planted}: {100 * caught / planted:.1f} %")


if __name__ == "__main__":
    main()
