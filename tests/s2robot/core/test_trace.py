"""Spans of several processes in one file of Chrome's trace format, and none without a trace."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from s2robot.core.trace import span, tracing


def spans_of(file: Path) -> list[dict[str, Any]]:
    return json.loads(file.read_text().rstrip(",\n") + "]")


def work(number: int) -> int:
    with span("work", number=number):
        return os.getpid()


def test_spans_of_all_processes_lie_inside_each_other(tmp_path):
    file = tmp_path / "trace.json"
    with pytest.raises(KeyError), tracing(file), span("all"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            there = pool.submit(work, 7).result()
        here = work(8)
        raise KeyError
    with span("nobody asked"):
        pass
    spans = {(row["name"], row["args"].get("number")): row for row in spans_of(file)}
    assert spans.keys() == {("all", None), ("work", 7), ("work", 8)}
    whole = spans["all", None]
    assert (spans["work", 7]["pid"], spans["work", 8]["pid"]) == (there, here) and here != there
    assert whole["ts"] < spans["work", 7]["ts"] < spans["work", 8]["ts"]
    for row in spans.values():
        assert row["ts"] + row["dur"] <= whole["ts"] + whole["dur"] + 2 and row["tid"] > 0  # to rounding
