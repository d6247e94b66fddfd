"""The helper that kills at every write: it sees each write, and tells a safe job from one that is not."""

import json
import os
from pathlib import Path

import pytest

from tests.kills import kill_at_every_write


def safe(folder: Path) -> None:
    found = {file.name: file.read_text() for file in sorted((folder / "out").glob("*"))}
    with (folder.parent / "found").open("a") as stream:
        print(json.dumps(found), file=stream)
    (folder / "out").mkdir(exist_ok=True)
    for name in ("a", "b"):
        part = folder / "out" / f"{name}.part"
        part.write_text(json.dumps(name))
        os.replace(part, folder / "out" / name)


def hasty(folder: Path) -> None:
    """What is there is taken for done."""
    if not (folder / "a").exists():
        (folder / "a").write_text(json.dumps("a"))
    json.loads((folder / "a").read_text())


def test_every_write_is_listed_and_killed_once(tmp_path):
    killed = kill_at_every_write(safe, tmp_path)
    names = ["mkdir out", "open out/a.part", "rename out/a", "open out/b.part", "rename out/b"]
    assert list(killed) == [f"{n} {name}" for n, name in enumerate(names)]
    for folder in killed.values():
        assert [(folder / "out" / name).read_text() for name in "ab"] == ['"a"', '"b"']
    assert not list(tmp_path.glob("*/out/*.part"))
    a, half = {"a": '"a"'}, '{"half a li'
    # what each run found: the one for its imports, the whole one, and those that went on
    assert [json.loads(line) for line in (tmp_path / "found").read_text().splitlines()] == [
        {}, {}, {}, {"a.part": half}, {"a.part": '"a"'}, a | {"b.part": half}, a | {"b.part": '"b"'},
    ]  # fmt: skip


def test_a_job_that_is_not_safe_is_found_out(tmp_path):
    with pytest.raises(AssertionError, match=r"killed at 0 open a(.|\n)*JSONDecodeError"):
        kill_at_every_write(hasty, tmp_path)
