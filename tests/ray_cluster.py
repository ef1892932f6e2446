"""A real Ray cluster of several raylets on this machine, on 127.0.0.1; nothing is left running after it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.slurm_cluster import free_port, without_slow_imports

PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


@contextlib.contextmanager
def ray_cluster(folder: Path, nodes: int = 3, cpus: int = 2) -> Iterator[Any]:
    """`ray.cluster_utils.Cluster`: its `address`, and `remove_node`, which kills a raylet and its workers."""
    without_slow_imports(folder)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # 127.0.0.1 stays what it is
    os.environ["RAY_agent_register_timeout_ms"] = "120000"  # noqa: SIM112 Ray's own spelling
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        for _ in range(nodes):
            ports = {name: free_port() for name in PORTS}
            memory = {"object_store_memory": 80 * 2**20, "memory": 4 * 2**30}
            cluster.add_node(num_cpus=cpus, node_ip_address="127.0.0.1", include_dashboard=False, **memory, **ports)
        yield cluster
    finally:
        cluster.shutdown()
