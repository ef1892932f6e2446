"""A real Ray cluster of three raylets: run by `make test-ray`, which installs Ray."""

import os
import time

import psutil
import pytest

from c3po_utils.batch import Resources, Task
from c3po_utils.runs.parameters import ParameterError
from tests.batch import bodies, toy
from tests.ray_cluster import ray_cluster
from tests.whole_run import check_that_the_command_line_makes_a_run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
HERE = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with ray_cluster(tmp_path_factory.mktemp("ray")) as cluster:
        yield cluster


@pytest.fixture
def executor(cluster):
    from c3po_utils.batch.ray_executor import RayExecutor

    made = []

    def make(slots=0, body=bodies.run, **settings):
        made.append(RayExecutor(slots, address=cluster.address, body=body, **settings))
        return made[-1]

    yield make
    for one in made:
        one.stop()


def task(folder, name="one", resources=None, **config):
    return Task({"run": str(folder), **config}, name, resources=resources or Resources())


def test_a_graph_goes_through_the_driver_and_a_failure_leaves_the_others_alone(executor, tmp_path):
    toy.check_that_a_failure_leaves_the_others_alone(tmp_path / "run", executor(body=toy.run_toy))


def test_the_command_line_makes_a_run_on_a_cluster(cluster, tmp_path, own_feedback, tiny_folder):
    check_that_the_command_line_makes_a_run(tmp_path, own_feedback, str(tiny_folder), "ray", address=cluster.address)


def test_slots_are_what_fits_on_the_nodes(executor):
    for cpus, slots in ((1, 6), (2, 3)):
        ray = executor(cpus=cpus)
        assert ray.slots == slots
        ray.stop()
    with pytest.raises(ParameterError, match="no node of the Ray cluster has what each task asks for"):
        executor(gpus=1)


def test_an_estimate_of_memory_above_every_node_does_not_wait_for_ever(executor, tmp_path):
    asked = Resources(memory_gib=1000)
    assert executor().submit(task(tmp_path, resources=asked)).result(60).status == "done"


def test_a_killed_worker_is_lost(executor, tmp_path):
    future = executor().submit(task(tmp_path, seconds=300))
    bodies.until(lambda: bodies.noted(tmp_path, "started"))
    os.kill(int(bodies.noted(tmp_path, "started")[0][1]), 9)
    outcome = future.result(60)
    assert (outcome.status, outcome.error.split(":")[0]) == ("lost", "WorkerCrashedError")


def test_a_body_that_raises_fails(executor, tmp_path):
    outcome = executor(body=bodies.raises).submit(task(tmp_path)).result(60)
    assert (outcome.status, outcome.error) == ("failed", "RuntimeError: one: a body that raises")


def test_stop_ends_what_runs_and_what_waits_within_five_seconds_and_leaves_the_cluster(executor, tmp_path):
    ray = executor()
    futures = [ray.submit(task(tmp_path, f"job{number}", seconds=300)) for number in range(8)]
    bodies.until(lambda: len(bodies.noted(tmp_path, "started")) > 1)
    start = time.monotonic()
    ray.stop()
    assert time.monotonic() - start < 5
    assert [future.result(0).status for future in futures] == ["lost"] * 8
    workers = [int(process) for _, process in bodies.noted(tmp_path, "started")]
    bodies.until(lambda: not any(psutil.pid_exists(worker) for worker in workers), 5)
    assert executor().submit(task(tmp_path, "again")).result(60).status == "done"


def test_a_cluster_that_is_started_here_ends_with_the_run(cluster, tmp_path):
    from c3po_utils.batch.ray_executor import RayExecutor

    before = set(psutil.Process().children(recursive=True))
    ray = RayExecutor(body=bodies.run)
    assert ray.submit(task(tmp_path)).result(60).status == "done"
    started = set(psutil.Process().children(recursive=True)) - before
    assert {one.laddr.ip for process in started for one in _listening(process)} <= HERE
    ray.stop()
    bodies.until(lambda: not any(process.is_running() for process in started), 20)


def test_servers_listen_on_this_machine_only(cluster):
    listening = [one for process in psutil.Process().children(recursive=True) for one in _listening(process)]
    assert len(listening) > 6
    assert {one.laddr.ip for one in listening} <= HERE


def _listening(process):
    try:
        return [one for one in process.net_connections("inet") if one.status == "LISTEN"]
    except psutil.Error:
        return []


def test_one_of_three_nodes_is_killed_in_mid_run(cluster, tmp_path):
    """Last, as it takes a node away."""
    from tests.benchmarks.bench_ray import killed_node

    found = killed_node(cluster, tmp_path / "run", 24)
    assert {key: found[key] for key in ("done", "torn", "twice_in_results")} == {
        "done": 24,
        "torn": 0,
        "twice_in_results": 0,
    }
    assert len(cluster.list_all_nodes()) == 2
