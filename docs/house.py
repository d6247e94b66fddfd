"""Packages, layers, imports and sizes, read from the code.

    python docs/house.py            # redraw docs/images/house.svg
    python docs/house.py --print    # layers, packages and sizes as text
    python docs/house.py --budget   # sizes against their limits

`tests/test_house.py` checks the code against :data:`LAYERS`, :data:`BUDGETS` and the rules beside them.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

# Lowest layer first. A package imports from layers below its own and from itself, never from its neighbours.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("core", "configs"),  # import nothing of ours
    ("envs", "policies"),  # import core alone
    ("demos",),  # imports envs and core
    ("config", "overrides"),
    ("reporting",),
    ("backbones", "inspection"),
    ("s2",),
    ("encoders", "vlm"),
    ("golden",),
    ("loading",),
    ("doctor",),
    ("training",),
    ("pretraining", "features"),
    ("evaluation",),
    ("dagger", "probing", "serving"),
    ("comparison", "deployment"),
    ("pipeline",),
    ("rounds",),
    ("verbs",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: level for level, names in enumerate(LAYERS) for name in names}
FACADES = ("s2robot",)  # public names that stand for a module: they import it, and nothing imports them
TOPS = ("envs", "demos", "policies", "configs")  # folders at the top level that are packages below s2robot

# The modules that draw or move the simulated world: the only ones that need the extra `sim` to be imported.
SIMULATED = {"robosuite", "mujoco", "mink", "fast_simplification"}


@dataclass(frozen=True)
class Import:
    """One imported name: `at` is `file:line`; `lazy` where it runs in a function; `typing` where types alone need it."""

    module: str
    name: str
    at: str
    lazy: bool
    typing: bool


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the package: its import name -> its file."""
    found = {}
    for top in ("s2robot", *TOPS):
        for file in sorted((root / top).rglob("*.py")):  # does not follow the links in s2robot/
            parts = [
                *([] if top == "s2robot" else ["s2robot"]),
                *file.relative_to(root).with_suffix("").parts,
            ]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def package_of(module: str) -> str:
    """`s2robot.envs.real.arms.ik` -> `envs`; `s2robot.pipeline` -> `pipeline`."""
    return module.split(".")[1]


def imports(module: str, found: dict[str, Path]) -> list[Import]:
    """All that a module imports, ours and others'; `from package import module` counts as that module."""
    file = found[module]
    where = file.relative_to(ROOT).as_posix()
    return [
        Import(module, name, f"{where}:{line}", lazy, typing)
        for name, line, lazy, typing in _walk(
            ast.parse(file.read_text(encoding="utf-8")), found, False, False
        )
    ]


def _walk(node: ast.AST, found: dict[str, Path], lazy: bool, typing: bool) -> Iterator[tuple]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, lazy, typing) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            for alias in child.names:
                module = "." * child.level + (child.module or "")
                full = f"{module}.{alias.name}"
                yield (full if full in found else module), child.lineno, lazy, typing
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from _walk(ast.Module(child.body, []), found, lazy, True)
            yield from _walk(ast.Module(child.orelse, []), found, lazy, typing)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, found, lazy or function, typing)


def graph(found: dict[str, Path] | None = None) -> dict[str, list[Import]]:
    """Every module's imports."""
    found = found or modules()
    return {module: imports(module, found) for module in found}


def functions(found: dict[str, Path]) -> dict[str, int]:
    """Lines of every function: `file:name` -> the longest of that name."""
    lines: dict[str, int] = {}
    for path in found.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
                lines[name] = max(lines.get(name, 0), (node.end_lineno or 0) - node.lineno + 1)
    return lines


def in_own_process(function: Callable[[dict[str, Path]], T], found: dict[str, Path]) -> T:
    """Return `function(found)` from a fresh process.

    CPython 3.11 raises SystemError in `ast.parse` when another thread or a destructor parses at the same time.
    """
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, found).result()


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(edges[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                out.append(sorted(group))

    for module in edges:
        if module not in index:
            visit(module)
    return out


def loaded(module: str, imported: dict[str, list[Import]]) -> dict[str, str]:
    """What importing a module imports in turn: name -> who asked for it (an import in a function waits)."""
    asked = {module: ""}
    queue = [module]
    while queue:
        here = queue.pop()
        if here not in imported:
            continue
        parts = here.split(".")
        parents = [
            ".".join(parts[:i]) for i in range(1, len(parts))
        ]  # a package's __init__ runs before its module
        for name in [*parents, *(i.name for i in imported[here] if not (i.lazy or i.typing))]:
            if name not in asked:
                asked[name] = here
                queue.append(name)
    return asked


def import_chain(name: str, asked: dict[str, str]) -> str:
    """`mujoco <- s2robot.envs.renderer <- ...`: how a name came to be imported."""
    steps = [name]
    while asked[steps[-1]]:
        steps.append(asked[steps[-1]])
    return " <- ".join(steps)


def purpose(module: str, found: dict[str, Path]) -> str:
    """The first line of a module's docstring."""
    text = ast.get_docstring(ast.parse(found[module].read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("`", "")


def packages() -> dict[str, tuple[int, int, str, list[str]]]:
    """package -> modules, lines, purpose, the packages that it imports; lowest layer first."""
    found = modules()
    imported = graph(found)
    out = {}
    for name in LAYER:
        own = [module for module in found if module not in FACADES and package_of(module) == name]
        lines = sum(len(found[module].read_text(encoding="utf-8").splitlines()) for module in own)
        below = {
            package_of(i.name)
            for module in own
            for i in imported[module]
            if i.name in found and i.name not in FACADES
        }
        out[name] = (
            len(own),
            lines,
            purpose(f"s2robot.{name}", found),
            sorted(below - {name}, key=lambda name: (LAYER[name], name)),
        )
    return out


def drawing() -> str:
    """The layers as SVG, the lowest at the bottom; imports go downwards only."""
    wide, high, gap = 1060, 62, 10
    facts = packages()
    out = []
    for level, names in enumerate(LAYERS):
        top = (len(LAYERS) - 1 - level) * (high + gap) + gap
        width = (wide - gap * (len(names) + 1)) / len(names)
        for n, name in enumerate(names):
            _, _, what, below = facts[name]
            left = gap + n * (width + gap)
            fits = int((width - 30 - 9 * len(name)) / 6.6)
            what = what if len(what) <= fits else what[: what.rfind(" ", 0, fits)].rstrip(",;:") + " …"
            uses = f"uses {', '.join(below)}" if below else "uses nothing of ours"
            out.append(
                "<g>"
                f'<rect x="{left:.0f}" y="{top}" width="{width:.0f}" height="{high}" rx="6"/>'
                f'<text x="{left + 12:.0f}" y="{top + 22}"><tspan class="n">{name}</tspan> <tspan class="s">{escape(what)}</tspan></text>'
                f'<text class="w" x="{left + 12:.0f}" y="{top + 44}">{uses}</text></g>'
            )
    height = len(LAYERS) * (high + gap) + gap
    style = (
        "rect{fill:#eef3f8;stroke:#5b7a99}text{font:13px sans-serif;fill:#1b2733}"
        ".n{font-weight:bold;font-size:15px}.s{fill:#5b6b7b}.w{font-size:12px}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {height}" width="{wide}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" style="fill:#fff;stroke:none"/>\n'
        + "\n".join(out)
        + "\n</svg>\n"
    )


# Line limits of each group of packages, comments and docstrings included; the trailing comment is the goal.
# The first group with a matching prefix counts a module.
BUDGETS: dict[str, tuple[tuple[str, ...], int]] = {
    "arm": (("envs.real", "deployment"), 8768),  # 7000
    "envs": (("envs",), 3610),  # 3700
    "demos": (("demos", "inspection"), 5252),  # 4000
    "policies": (("policies",), 3048),  # 3000
    "vision": (("backbones", "s2", "encoders", "vlm", "features"), 3437),  # 3600
    "training": (("training", "pretraining"), 1982),  # 1800
    "evaluation": (("evaluation", "comparison", "dagger", "reporting"), 4418),  # 4000
    "probing": (("probing",), 1505),  # 1600
    "serving": (("serving",), 932),  # 600
    "core": (("",), 3213),  # 2700: core, config, the command line and the pipeline
}
MAX_TEST_LINES = 25000
MAX_BENCHMARK_LINES = 3210
MAX_DOC_WORDS, MAX_README_WORDS = 24000, 900  # README included and the changelog not


def sizes() -> dict[str, int]:
    """Lines of the product by group of :data:`BUDGETS`, of tests and of benchmarks; words of the documentation."""
    found = modules()
    lines = {name: _lines(path) for name, path in found.items()}
    groups = dict.fromkeys(BUDGETS, 0)
    for name, count in lines.items():
        path = name.partition(".")[2]
        groups[next(g for g, (begins, _) in BUDGETS.items() if path.startswith(begins))] += count
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    return groups | {
        "tests": sum(map(_lines, (ROOT / "tests").rglob("*.py"))),
        "benchmarks": sum(map(_lines, (ROOT / "benchmarks").rglob("*.py"))),
        "documentation, words": sum(len(page.read_text(encoding="utf-8").split()) for page in pages),
        "README, words": len((ROOT / "README.md").read_text(encoding="utf-8").split()),
    }


def limits() -> dict[str, int]:
    """The limit of each of :func:`sizes`."""
    return {group: limit for group, (_, limit) in BUDGETS.items()} | {
        "tests": MAX_TEST_LINES,
        "benchmarks": MAX_BENCHMARK_LINES,
        "documentation, words": MAX_DOC_WORDS,
        "README, words": MAX_README_WORDS,
    }


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def counts() -> dict[str, int]:
    """Product files, verbs, classes of settings, and errors that the code raises for a user's input."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in modules().values()]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    raised = [ast.unparse(n.exc).partition("(")[0] for n in nodes if isinstance(n, ast.Raise) and n.exc]
    user = {"UserError", "EnvError", "DatasetError", "mismatch", "invalid"}
    return {
        "product lines": sum(map(_lines, modules().values())),
        "product files": len(trees),
        "verbs": (ROOT / "s2robot/cli.py").read_text(encoding="utf-8").count(": Verb("),
        "settings classes": sum(
            isinstance(n, ast.ClassDef) and n.name.endswith(("Settings", "Config", "Limits")) for n in nodes
        ),
        "guards": sum(name in user for name in raised),
    }


if __name__ == "__main__":
    if "--budget" in sys.argv:
        most = limits()
        for name, size in sizes().items():
            print(f"{name:<24}{size:>7} of {most[name]}{'  over' if size > most[name] else ''}")
        for name, count in counts().items():
            print(f"{name:<24}{count:>7}")
    elif "--print" in sys.argv:
        for name, (count, lines, what, below) in reversed(packages().items()):
            print(
                f"{LAYER[name]:2} {name:<12} {count:3} modules {lines:5} lines  {what}  <- {', '.join(below)}"
            )
    else:
        (ROOT / "docs/images/house.svg").write_text(drawing(), encoding="utf-8")
