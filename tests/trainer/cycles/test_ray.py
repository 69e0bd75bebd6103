"""The benchmark on a real Ray cluster of two nodes on this machine; a worker that dies is retried."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from alpose.runtime.errors import ConfigError, MissingExtraError
from alpose.trainer.cycles.benchmark import run_benchmark
from alpose.trainer.cycles.ray_executor import run_on_ray
from alpose.trainer.cycles.results import Results
from alpose.trainer.cycles.run import RunConfig
from alpose.trainer.data.catalog import Sizes
from alpose.trainer.device import DeviceContext

CPU = DeviceContext(torch.device("cpu"), torch.float32)
TIMES = ("train_seconds", "score_seconds")


def config() -> RunConfig:
    return RunConfig.from_preset("smoke", "synthetic", methods=("random", "ll++conv"), seeds=2, stages=1, budget=8,
                                 initial=24, sizes=Sizes(initial=24, pool=16, test=8))  # fmt: skip


def without_times(results: Results) -> list[dict[str, Any]]:
    return [{k: v for k, v in asdict(row).items() if k not in TIMES} for row in results.rows]


def kill_a_worker(raylets: list[int], folder: Path, killed: list[int]) -> None:
    """kill -9 the first worker that is seen in a task of a method."""
    give_up = time.monotonic() + 120
    while time.monotonic() < give_up and not killed:
        for raylet in raylets:
            listed = subprocess.run(
                ["ps", "--ppid", str(raylet), "-o", "pid=,args="], capture_output=True, text=True, check=False
            )
            for line in listed.stdout.splitlines():
                pid, _, name = line.strip().partition(" ")
                if re.match(r"ray::\S+ of seed", name.strip()) and any(folder.glob("seed-*/*/stage-1/row.json")):
                    os.kill(int(pid), signal.SIGKILL)
                    killed.append(int(pid))
                    return
        time.sleep(0.005)


def test_two_nodes_and_a_worker_that_dies_give_the_rows_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in (("OMP_NUM_THREADS", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
        monkeypatch.setenv(name, value)
    alone = run_benchmark(config(), tmp_path / "alone", CPU, data_root=None, cache=tmp_path / "cache")
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    killed: list[int] = []
    try:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        assert len([node for node in ray.nodes() if node["Alive"]]) == 2
        raylets = [process.process.pid for node in cluster.list_all_nodes() for process in node.all_processes["raylet"]]
        killer = threading.Thread(target=kill_a_worker, args=(raylets, tmp_path / "spread", killed), daemon=True)
        killer.start()
        spread = run_benchmark(
            config(), tmp_path / "spread", CPU, data_root=None, cache=tmp_path / "cache", executor="ray"
        )
        killer.join(10)
    finally:
        ray.shutdown()
        cluster.shutdown()

    assert len(killed) == 1
    assert len(spread.rows) == 4
    assert without_times(spread) == without_times(alone)
    assert [base["test_pck"] for base in spread.bases] == [base["test_pck"] for base in alone.bases]


def test_it_does_not_mix_with_torchrun(tmp_path: Path) -> None:
    two = DeviceContext(torch.device("cpu"), torch.float32, rank=0, world=2)
    with pytest.raises(ConfigError, match="torchrun"):
        run_on_ray(config(), tmp_path, two, data_root=None, cache=tmp_path, tasks=(), collect=lambda _rows: None)


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"alpose\[ray\]"):
        run_on_ray(config(), tmp_path, CPU, data_root=None, cache=tmp_path, tasks=(), collect=lambda _rows: None)
