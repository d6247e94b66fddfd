"""The code in the docs is run, block by block, and its output compared; the commands' settings exist."""

import doctest
import re
import shlex
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from s2robot.cli import VERBS
from s2robot.core.files import configs_dir
from s2robot.overrides import as_known

torch.set_num_threads(1)
DOCS = Path(__file__).parents[3] / "docs"
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]


@pytest.mark.parametrize("name", ["s2.md"])
def test_code_blocks_run(name):
    pytest.importorskip("transformers")
    text = (DOCS / name).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert blocks and all(">>> " in block for block in blocks)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, name, name, 0)
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=report.append)
    assert result.attempted == text.count("\n>>> ") and not result.failed, "".join(report)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_of_commands_exist(page):
    text = re.sub(r"\\\n +", "", page.read_text())  # a command over two lines
    lines = re.findall(r"^(?: {4})?(s2robot \w+ .*=.*)$", text, re.MULTILINE)
    lines += re.findall(r"`(s2robot \w+ [^`]*=[^`]*)`", text)
    assert lines or page.name not in ("README.md", "encoders.md", "policies.md")
    with initialize_config_dir(str(configs_dir()), version_base="1.3"):
        for line in lines:
            verb, *words = shlex.split(re.sub(r"<[^>]*>", "x", line))[1:]
            assert verb in VERBS, line
            if any(word.startswith("--config-dir") for word in words):
                continue  # of a task of one's own: its page is run as it stands
            sweep = "--multirun" in words  # compose takes one value only
            settings = [word.split(",")[0] if sweep else word for word in words if "=" in word]
            settings = [as_known(verb, word) for word in settings]
            placeholders = ("hydra.", "hydra/", "task=x")  # launchers come with an extra
            compose(verb, [word for word in settings if not word.startswith(placeholders)])
