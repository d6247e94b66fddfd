"""Features are read batch by batch from a mapped file, so that a cache may exceed the memory."""

import subprocess
import sys

import pytest

from tests.kills import ROOT

# RLIMIT_DATA bounds the private memory of a process (heap and private maps). Features read all at once would count; the
# pages of a mapped file do not, since the system can reclaim them. RLIMIT_AS would count the map.
LIMIT_MB, CACHE_MB = 64, 256
CHILD = f"""
import resource, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from s2robot.training.train import train
from tests.s2robot.training.small import CONTRACT, make_data, make_settings, make_spec

out = Path(sys.argv[1])
store, small = make_data(out / "d.zarr", 100)
def fit(features, name, dim):
    contract = CONTRACT | {{"dataset": {{"fingerprint": name}}}}
    train(make_settings(steps=6, log_every=3, loggers=()), make_spec(dim=dim), store, features, contract, out / name)

fit(small, "warm", small.shape[-1])  # libraries allocate what they need
dim = {CACHE_MB} * 2**20 // (2 * small[..., 0].size)
features = np.memmap(out / "features", np.float16, "w+", shape=(*small.shape[:-1], dim))
features[::7, :, :, :64] = 1  # the rest of the file is sparse
features = np.memmap(out / "features", np.float16, "r", shape=features.shape)
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + {LIMIT_MB} * 2**20,) * 2)
fit(features, "large", dim)
print("trained")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="requires Linux memory limits")
def test_training_with_a_cache_of_four_times_the_memory(tmp_path):
    words = [sys.executable, "-c", CHILD, str(tmp_path)]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0 and result.stdout.endswith("trained\n"), result.stderr
    assert (tmp_path / "features").stat().st_size > 3.9 * LIMIT_MB * 2**20
