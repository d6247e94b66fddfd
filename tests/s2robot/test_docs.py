"""The code in the docs is run, block by block, and its output compared."""

import doctest
import re
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
DOCS = Path(__file__).parents[2] / "docs"


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
