"""Spans of several processes in one file of Chrome's trace format, and none where nobody asked."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from s2robot.core.trace import span, tracing


def work(number: int) -> int:
    with span("work", number=number):
        return os.getpid()


def test_spans_of_all_processes_lie_inside_each_other(tmp_path):
    file = tmp_path / "trace.json"
    with tracing(file), span("all"):
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            there = pool.submit(work, 7).result()
        here = work(8)
    trace = json.loads(file.read_text())
    spans = {
        (row["name"], row["args"].get("number")): row for row in trace["traceEvents"] if row["ph"] == "X"
    }
    names = {row["pid"]: row["args"]["name"] for row in trace["traceEvents"] if row["ph"] == "M"}
    assert spans.keys() == {("all", None), ("work", 7), ("work", 8)}
    assert names == {here: "main", there: f"worker {there}"} and here != there
    whole = spans["all", None]
    assert whole["ts"] == 0 and (spans["work", 7]["pid"], spans["work", 8]["pid"]) == (there, here)
    assert spans["work", 7]["ts"] < spans["work", 8]["ts"]
    for row in spans.values():
        assert row["ts"] + row["dur"] <= whole["dur"] + 0.002 and row["tid"] > 0  # to rounding
    assert list(tmp_path.iterdir()) == [file]


def test_a_trace_is_written_when_the_work_fails_and_without_one_nothing_is(tmp_path):
    with pytest.raises(KeyError), tracing(tmp_path / "trace.json"), span("fails"):
        raise KeyError
    assert [row["name"] for row in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]] == [
        "process_name", "fails",
    ]  # fmt: skip
    with span("nobody asked"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]
