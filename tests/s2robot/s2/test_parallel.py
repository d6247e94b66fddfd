"""Calls spread over threads and processes against the model in one piece."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

from s2robot.common.errors import UserError
from s2robot.s2.engine import encode
from s2robot.s2.layout import square
from s2robot.s2.parallel import TileParallel, _parts
from tests.kills import ROOT

torch.set_num_threads(1)
LAYOUT = square((16, 32), 16, 8)


class Probe(nn.Module):
    """Says which process and how many threads computed a row; fails and ends on request."""

    num_prefix_tokens = 5

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor, word: str = "") -> torch.Tensor:
        if word == "fail" and x.min() == 0:  # only the worker that has row 0
            raise ValueError("as asked")
        if word == "none":
            return None
        facts = [os.getpid(), torch.get_num_threads(), len(x), float(self.weight)]
        return torch.tensor([facts] * len(x), dtype=torch.float64)


class Small(nn.Module):
    """Patches that see each other, behind one more token: of torch alone, which a process loads in half the time."""

    num_prefix_tokens = 1

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mix = nn.Conv2d(3, 32, 8, 8), nn.Linear(32, 96)
        self.first = nn.Parameter(torch.randn(1, 1, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2)  # (B, N, 32)
        tokens = torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)
        return tokens + nn.functional.scaled_dot_product_attention(*self.mix(tokens).chunk(3, -1))


def rows(n: int) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, 2, 2)


def vit(dtype: torch.dtype) -> nn.Module:
    from s2robot.backbones.inference import prepare
    from s2robot.backbones.vit import MVPViT, ViTSpec

    torch.manual_seed(0)
    return prepare(MVPViT(ViTSpec(img_size=16, patch_size=8, dim=32, depth=2, heads=2)), dtype)


@pytest.fixture(scope="module")
def workers():
    with TileParallel(Probe(), processes=2, threads=1) as model:
        yield model


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("total", [1, 2, 5, 13])
def test_parts_cover_all_rows_evenly(n, total):
    parts = _parts(total, n)
    assert [row for start, stop in parts for row in range(start, stop)] == list(range(total))
    sizes = [stop - start for start, stop in parts]
    assert (
        max(sizes) - min(sizes) <= 1 and len(parts) == min(n, total) and sizes == sorted(sizes, reverse=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_devices_give_what_the_model_gives(dtype):
    model = vit(dtype)
    threads = torch.get_num_threads()
    levels = [torch.randn(1, 3, 16, 16), torch.randn(1, 3, 32, 32)]
    with torch.inference_mode(), TileParallel(model, devices=["cpu", "cpu"]) as parallel:
        out, expected = encode(parallel, levels, LAYOUT, 1), encode(model, levels, LAYOUT, 1)
        assert parallel.spec == model.spec and parallel.num_prefix_tokens == 1
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.03)
        assert parallel(torch.randn(0, 3, 16, 16)).shape == (0, 5, 32)
        assert parallel(torch.randn(3, 3, 16, 16), block=1).shape == (3, 5, 32)
    assert torch.get_num_threads() == threads


def test_devices_share_what_they_can():
    model = Probe()
    with TileParallel(model, devices=["cpu", "cpu", "cpu"], threads=1) as parallel:
        assert all(replica is model for replica in parallel._crew.replicas)
        assert parallel(rows(7))[:, 2].tolist() == [3, 3, 3, 2, 2, 2, 2]
        with pytest.raises(UserError, match="gives a NoneType, expected a tensor"):
            parallel(rows(3), "none")


def test_processes_give_what_the_model_gives():
    torch.manual_seed(0)
    model = Small().eval()
    levels = [torch.randn(2, 3, 16, 16), torch.randn(2, 3, 32, 32)]
    with torch.inference_mode(), TileParallel(model, processes=2) as parallel:
        expected = encode(model, levels, LAYOUT, 1)
        first, again = encode(parallel, levels, LAYOUT, 1), encode(parallel, levels, LAYOUT, 1)
        torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)
        assert torch.equal(first, again)
        for n in (1, 3, 0):  # other shapes, fewer rows than workers
            x = torch.randn(n, 3, 16, 16)
            torch.testing.assert_close(parallel(x), model(x), rtol=0, atol=1e-6)
        processes = parallel._crew.processes
        assert all(process.is_alive() for process in processes)
    assert [process.exitcode for process in processes] == [0, 0]
    parallel.close()


def test_rows_are_divided_over_processes(workers):
    out = workers(rows(5))
    assert out[:, 2].tolist() == [3, 3, 3, 2, 2] and out[:, 1].tolist() == [1] * 5
    pids = out[:, 0].unique().tolist()
    assert len(pids) == 2 and os.getpid() not in pids
    kept = out.clone()
    workers(rows(5) + 1)
    assert torch.equal(out, kept)  # the result is no view of memory that the next call writes


def test_weights_are_shared_with_processes(workers):
    with torch.no_grad():
        workers.model.weight.fill_(3)
    assert workers(rows(4))[:, 3].tolist() == [3] * 4


def test_a_failing_model_is_one_error_and_the_workers_go_on(workers):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="tile worker 1 of 2: ValueError: as asked"):
            workers(rows(4), word="fail")
    with pytest.raises(RuntimeError, match="gives a NoneType, expected a tensor"):
        workers(rows(4), "none")
    assert len(workers(rows(4))) == 4 and len(workers(rows(6))) == 6


class Sleeper(Probe):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0 if x.min() == 0 else 60)
        return super().forward(x)


def test_a_worker_killed_during_a_call_is_one_error_and_no_hang():
    model = TileParallel(Sleeper(), processes=2)
    processes = model._crew.processes
    threading.Timer(0.5, os.kill, (processes[1].pid, signal.SIGKILL)).start()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"tile worker 2 of 2 has ended \(exit code -9\)"):
        model(rows(4))
    assert time.monotonic() - start < 30
    assert not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match="already closed"):
        model(rows(4))


def test_a_worker_killed_between_calls_is_one_error():
    model = TileParallel(Probe(), processes=1)
    (process,) = model._crew.processes
    process.kill()
    process.join()
    with pytest.raises(RuntimeError, match=r"tile worker 1 of 1 has ended \(exit code -9\)"):
        model(rows(4))


def gone(*_: object) -> None:
    os._exit(3)


def test_a_worker_that_ends_at_its_start_is_one_error(monkeypatch):
    monkeypatch.setattr("s2robot.s2.parallel._work", gone)
    with pytest.raises(RuntimeError, match=r"tile worker 1 of 1 has ended \(exit code 3\)"):
        TileParallel(Probe(), processes=1)


def test_what_is_forgotten_is_closed():
    model = TileParallel(Probe(), processes=1)
    (process,) = model._crew.processes
    del model
    assert process.exitcode == 0


def test_arguments_that_cannot_be_sent_end_the_workers_and_no_later_call_gets_older_rows():
    model = TileParallel(Probe(), processes=1)
    with pytest.raises(Exception, match="pickle"):
        model(rows(4), lambda: None)
    with pytest.raises(RuntimeError, match="has ended"):
        model(rows(4))


class Deep(nn.Module):
    """More tensors than file descriptors go with the start of a process."""

    def __init__(self) -> None:
        super().__init__()
        self.shifts = nn.ParameterList([torch.ones(1)] * 300)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + sum(self.shifts)


def test_a_model_may_have_hundreds_of_tensors():
    with TileParallel(Deep(), processes=1) as model:
        torch.testing.assert_close(model(rows(2)), rows(2) + 300)


CTRL_C = """
from s2robot.s2.parallel import TileParallel
from tests.s2robot.s2.test_parallel import Sleeper, rows

if __name__ == "__main__":
    model = TileParallel(Sleeper(), processes=2)
    print(*(process.pid for process in model._crew.processes), flush=True)
    model(rows(4))
"""


def test_ctrl_c_is_for_the_process_that_started_the_workers(tmp_path):
    (tmp_path / "script.py").write_text(CTRL_C)
    command = [sys.executable, str(tmp_path / "script.py")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, start_new_session=True, **pipes) as process:
        workers = process.stdout.readline().split()
        time.sleep(0.5)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said = process.communicate(timeout=90)[1]
    assert (
        process.returncode == -signal.SIGINT
        and said.count("Traceback") == said.count("KeyboardInterrupt") == 1
    ), said
    assert len(workers) == 2 and not any(os.path.exists(f"/proc/{worker}") for worker in workers)


def test_errors():
    for arguments, words in (
        ({}, "devices None and processes None, give one"),
        ({"devices": ["cpu"], "processes": 2}, r"devices \['cpu'\] and processes 2, give one"),
        ({"devices": []}, "0 parts"),
        ({"processes": 0}, "0 parts"),
        ({"processes": 1, "threads": 0}, "threads 0"),
        ({"processes": 1.5}, "found 1.5 parts .* whole numbers"),
        ({"devices": "cpu"}, r"found devices 'cpu', expected several, such as \['cpu', 'cpu'\]"),
        ({"devices": ["cpu", "gpu"]}, "found device 'gpu', which torch cannot use: Expected one of"),
        ({"devices": [None]}, "found device None, which torch cannot use"),
        ({"devices": ["cuda:99"]}, "found device 'cuda:99', which torch cannot use"),
    ):
        with pytest.raises(UserError, match=words) as error:
            TileParallel(Probe(), **arguments)
        assert "\n" not in str(error.value)
    model = Probe()
    model.helper = lambda x: x
    with pytest.raises(UserError, match="Probe cannot go to a process"):
        TileParallel(model, processes=1)
    with pytest.raises(UserError, match="found a model on meta"):
        TileParallel(Probe().to("meta"), processes=1)
