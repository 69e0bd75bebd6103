"""What selecting from many embeddings takes, measured by the kernel in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SELECT = """
import numpy as np, torch
from alpose.trainer.methods.coreset import k_centre

def peak_mib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024

torch.set_num_threads(1)
rng = np.random.default_rng(0)
pool, labelled = rng.random((100_000, 256), dtype=np.float32), rng.random((1000, 256), dtype=np.float32)
k_centre(pool[:2000], labelled, 5)  # what libraries take at first use is not ours
before = peak_mib()
picks, _ = k_centre(pool, labelled, 100)
print(len(set(picks.tolist())), peak_mib() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel does not tell the peak of a process")
def test_coreset_of_a_hundred_thousand_takes_less_than_another_copy_of_them() -> None:
    """The pool is 98 MiB, its distances to the labelled would be 381; some 50 are taken, as by twice the pool."""
    done = subprocess.run([sys.executable, "-c", SELECT], capture_output=True, text=True, check=True)
    picked, taken_mib = done.stdout.split()
    assert int(picked) == 100
    assert 0 < float(taken_mib) < 80
