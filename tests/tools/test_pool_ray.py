"""A pool scored on a real Ray cluster of two nodes on this machine, one of which is killed."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from alpose.runtime.errors import MissingExtraError
from alpose.tools.pool import choose
from alpose.trainer.device import device_context
from alpose.trainer.pool.scores import score_pool

from .pools import fill, own_model

CPU = device_context("cpu", "fp32")


def test_a_node_that_dies_costs_its_shard_and_changes_no_pick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    for name, value in (("OMP_NUM_THREADS", "1"), ("RAY_USAGE_STATS_ENABLED", "0")):
        monkeypatch.setenv(name, value)
    model, pool = own_model(tmp_path / "model"), fill(tmp_path / "pool", 12)
    held, doomed = tmp_path / "held", tmp_path / "doomed"

    def people(image_HW3: Any) -> Any:
        """Waits for its end on the node that is to die."""
        import time

        if doomed.exists():
            import ray

            if ray.is_initialized() and ray.get_runtime_context().get_node_id() == doomed.read_text():
                held.touch()
                time.sleep(600)
        return [[0, 0, image_HW3.shape[1] - 1, image_HW3.shape[0] - 1]]

    alone = score_pool(model, pool, tmp_path / "alone", boxes=people, machine=CPU, shard=5)
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)

    def kill(node: Any) -> None:
        give_up = time.monotonic() + 120
        while not held.exists() and time.monotonic() < give_up:
            time.sleep(0.02)
        cluster.remove_node(node, allow_graceful=False)

    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        doomed.write_text(second.node_id)
        killer = threading.Thread(target=kill, args=(second,), daemon=True)
        killer.start()
        spread = score_pool(model, pool, tmp_path / "spread", boxes=people, machine=CPU, shard=2, executor="ray")
        killer.join(30)
        nodes = len(cluster.list_all_nodes())
    finally:
        ray.shutdown()
        cluster.shutdown()

    assert held.exists()
    assert nodes == 1
    assert spread.scored_now == 12
    np.testing.assert_array_equal(spread.id_N, alone.id_N)
    np.testing.assert_array_equal(spread.failure_N, alone.failure_N)
    np.testing.assert_array_equal(spread.embedding_ND, alone.embedding_ND)
    assert choose(spread, "value", 6, seed=0) == choose(alone, "value", 6, seed=0)


def test_without_ray_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"alpose\[ray\]"):
        score_pool(own_model(tmp_path / "model"), fill(tmp_path / "pool", 1), tmp_path, machine=CPU, executor="ray")
