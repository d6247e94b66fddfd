"""Code blocks of the docs run and print the documented output; settings of documented commands exist."""

import doctest
import re
import shlex
from itertools import product
from pathlib import Path

import pytest

from s2robot.cli import VERBS
from s2robot.overrides import as_known, verb_of
from tests.configs import composed

DOCS = Path(__file__).parents[3] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


def test_code_blocks_run():
    pytest.importorskip("transformers")
    text = (DOCS / "s2.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks and all(">>> " in block for block in blocks)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "s2.md", "s2.md", 0)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert result.attempted == text.count("\n>>> ") and not result.failed, "".join(report)


def test_settings_of_commands_exist():
    """Commands of one verb without conflicting settings are composed together, which is much faster."""
    together: dict[str, list[list[str]]] = {}
    for page in PAGES:
        text = re.sub(r"\\\n +", "", page.read_text())  # a command on two lines
        lines = re.findall(r"^(?: {4})?(s2robot \w+ .*=.*)$", text, re.MULTILINE)
        lines += re.findall(r"`(s2robot \w+ [^`]*=[^`]*)`", text)
        assert lines or page.name not in ("README.md", "encoders.md", "policies.md")
        for line in lines:
            verb, *words = shlex.split(re.sub(r"<[^>]*>", "x", line))[1:]
            assert verb in VERBS, f"{page.name}: {line}"
            verb = verb_of(verb, words)
            if any(word.startswith("--config-dir") for word in words):
                continue  # custom tasks: test_own_task.py runs that page
            words = [word.split(",")[0] if "--multirun" in words else word for word in words if "=" in word]
            placeholders = ("hydra.", "hydra/", "task=x")  # launchers come with an extra
            settings = [as_known(verb, word) for word in words if not word.startswith(placeholders)]
            groups = together.setdefault(verb, [])
            free = (g for g in groups if not any(clash(a, b) for a, b in product(g, settings)))
            if (group := next(free, None)) is None:
                groups.append(group := [])
            group += [word for word in settings if word not in group]
    for verb, groups in together.items():
        for group in groups:
            composed(verb, *group)


def clash(a: str, b: str) -> bool:
    """Return whether two settings assign one key two values, or one selects the config group of the other."""
    keys = [word.lstrip("+~").split("=")[0] for word in (a, b)]
    tops = [key.split(".")[0] for key in keys]
    return a != b and (keys[0] == keys[1] or keys[0] == tops[1] or keys[1] == tops[0])
