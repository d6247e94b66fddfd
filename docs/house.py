"""The rooms of the house and who imports whom, read from the code's own imports.

    python docs/house.py            # draw docs/images/house.svg anew
    python docs/house.py --print    # floors, rooms and counts as text

`tests/test_house.py` holds the code against :data:`FLOORS` and the rules beside it.
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

# Lowest floor first. A wing imports from floors below its own, and from itself; never from its neighbours.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("configs", "envs", "policies"),  # import nothing of ours
    ("demos",),  # imports envs alone
    ("common",),
    ("reporting",),
    ("backbones", "inspection"),
    ("s2",),
    ("encoders", "vlm"),
    ("loading",),
    ("training",),
    ("pretraining", "features"),
    ("evaluation",),
    ("dagger", "probing", "serving"),
    ("comparison", "deployment"),
    ("pipeline",),
    ("rounds", "validation"),
    ("verbs",),
    ("cli",),
    ("job", "__main__"),
)
FLOOR = {wing: level for level, wings in enumerate(FLOORS) for wing in wings}
DOORS = (
    "s2robot",
    "s2robot.mvp",
)  # public names that stand for a room: they import it, and nothing imports them
TOPS = ("envs", "demos", "policies", "configs")  # folders at the top level that are packages below s2robot

# The rooms that draw or move the simulated world: the only ones that need the extra `sim` to be imported.
SIMULATED = {"robosuite", "mujoco", "mink", "fast_simplification"}


@dataclass(frozen=True)
class Import:
    """One imported name: `at` is `file:line`; `lazy` where it runs in a function; `typing` where types alone need it."""

    room: str
    name: str
    at: str
    lazy: bool
    typing: bool


def rooms(root: Path = ROOT) -> dict[str, Path]:
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


def wing(room: str) -> str:
    """`s2robot.envs.real.arms.ik` -> `envs`; `s2robot.pipeline` -> `pipeline`."""
    return room.split(".")[1]


def imports(room: str, found: dict[str, Path]) -> list[Import]:
    """All that a room imports, ours and others'; `from package import module` counts as that module."""
    file = found[room]
    where = file.relative_to(ROOT).as_posix()
    return [
        Import(room, name, f"{where}:{line}", lazy, typing)
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
    """Every room's imports."""
    found = found or rooms()
    return {room: imports(room, found) for room in found}


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


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of rooms that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    out: list[list[str]] = []

    def visit(room: str) -> None:
        index[room] = low[room] = len(index)
        stack.append(room)
        for other in sorted(edges[room]):
            if other not in index:
                visit(other)
                low[room] = min(low[room], low[other])
            elif other in stack:
                low[room] = min(low[room], index[other])
        if low[room] == index[room]:
            group = stack[stack.index(room) :]
            del stack[stack.index(room) :]
            if len(group) > 1:
                out.append(sorted(group))

    for room in edges:
        if room not in index:
            visit(room)
    return out


def loaded(room: str, imported: dict[str, list[Import]]) -> dict[str, str]:
    """What importing a room imports in turn: name -> who asked for it (an import in a function waits)."""
    asked = {room: ""}
    queue = [room]
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


def way(name: str, asked: dict[str, str]) -> str:
    """`mujoco <- s2robot.envs.renderer <- ...`: how a name came to be imported."""
    steps = [name]
    while asked[steps[-1]]:
        steps.append(asked[steps[-1]])
    return " <- ".join(steps)


def purpose(room: str, found: dict[str, Path]) -> str:
    """The first line of a room's docstring."""
    text = ast.get_docstring(ast.parse(found[room].read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].rstrip(".").replace("`", "")


def wings() -> dict[str, tuple[int, int, str, list[str]]]:
    """wing -> rooms, lines, purpose, the wings that it imports; lowest floor first."""
    found = rooms()
    imported = graph(found)
    out = {}
    for name in FLOOR:
        own = [room for room in found if room not in DOORS and wing(room) == name]
        lines = sum(len(found[room].read_text(encoding="utf-8").splitlines()) for room in own)
        below = {
            wing(i.name) for room in own for i in imported[room] if i.name in found and i.name not in DOORS
        }
        out[name] = (
            len(own),
            lines,
            purpose(f"s2robot.{name}", found),
            sorted(below - {name}, key=lambda w: (FLOOR[w], w)),
        )
    return out


def drawing() -> str:
    """The floor plan as SVG: a row a floor, the lowest at the bottom; imports go downwards only."""
    wide, high, gap = 1060, 62, 10
    facts = wings()
    out = []
    for level, names in enumerate(FLOORS):
        top = (len(FLOORS) - 1 - level) * (high + gap) + gap
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
    height = len(FLOORS) * (high + gap) + gap
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


if __name__ == "__main__":
    if "--print" in sys.argv:
        for name, (count, lines, what, below) in reversed(wings().items()):
            print(
                f"{FLOOR[name]:2} {name:<12} {count:3} rooms {lines:5} lines  {what}  <- {', '.join(below)}"
            )
    else:
        (ROOT / "docs/images/house.svg").write_text(drawing(), encoding="utf-8")
