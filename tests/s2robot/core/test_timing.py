"""The timing of a run: rows that add up, CPU seconds of all children, and spans of several processes."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from s2robot.core.timing import Stages, age_s, processor_s, span, tracing
from s2robot.features import FeaturesSettings

BURN = "import time\nwhile time.process_time() < 0.3: pass"
TICK = 1 / os.sysconf("SC_CLK_TCK")  # four figures of a running process are each truncated to a tick


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_stages_add_up_to_the_total_including_children(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    assert FeaturesSettings(threads=1).shares() == (3, 1)
    timed = Stages(tmp_path / "stages.json")
    with timed("own"):
        burn(0.2)
    with timed("child"):
        subprocess.run([sys.executable, "-c", BURN], check=True)
    burn(0.2)  # outside all stages
    start, own, child = json.loads((tmp_path / "stages.json").read_text())
    assert [row["stage"] for row in (start, own, child)] == ["start", "own", "child"]
    assert 0.2 <= own["processor_s"] < 0.5 and 0.3 <= child["processor_s"] < 1
    for row in (own, child):
        assert row["unused_s"] == pytest.approx(3 * row["seconds"] - row["processor_s"], abs=0.21)
    names, seconds, _, processor, *_ = zip(*(s.split() for s in timed.table().splitlines()[1:]), strict=True)
    assert names == ("start", "own", "child", "other", "total") and float(processor[3]) >= 0.1
    for column in (seconds, processor):
        *parts, total = map(float, column)
        assert sum(parts) == pytest.approx(total, abs=0.3)


def test_running_child_and_its_children_count_and_processes_have_ages():
    """Like the fork server and its workers."""
    words = (
        f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {BURN!r}])\n"
        "from s2robot.core.timing import age_s\nprint(age_s(), flush=True)\nsys.stdin.read()"
    )
    before, started = processor_s(), time.monotonic()
    with subprocess.Popen([sys.executable, "-c", words], stdin=-1, stdout=-1) as child:
        age = float(child.stdout.readline())
        alive = processor_s() - before
        child.stdin.close()
    assert 0.3 - 5 * TICK < alive < 5
    assert processor_s() - before == pytest.approx(alive, abs=0.2)  # not counted twice
    assert 0.3 < age < time.monotonic() - started + 0.05 and age_s() > time.process_time() / 4


def spans_of(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text().rstrip(",\n") + "]")


def work(number: int) -> int:
    with span("work", number=number):
        return os.getpid()


def test_spans_of_all_processes_are_nested(tmp_path):
    file = tmp_path / "trace.json"
    with pytest.raises(KeyError), tracing(file), span("all"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            worker = pool.submit(work, 7).result()
        own = work(8)
        raise KeyError
    with span("not traced"):
        pass
    spans = {(row["name"], row["args"].get("number")): row for row in spans_of(file)}
    assert spans.keys() == {("all", None), ("work", 7), ("work", 8)}
    outer = spans["all", None]
    assert (spans["work", 7]["pid"], spans["work", 8]["pid"]) == (worker, own) and own != worker
    assert outer["ts"] < spans["work", 7]["ts"] < spans["work", 8]["ts"]
    for row in spans.values():
        assert row["ts"] + row["dur"] <= outer["ts"] + outer["dur"] + 2 and row["tid"] > 0  # 2 for rounding
