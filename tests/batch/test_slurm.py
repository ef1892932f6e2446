"""A real Slurm: run by `make test-slurm`, which installs it and submitit."""

import os
import subprocess
import time

import pytest

from c3po_utils.batch import Task
from c3po_utils.runs.parameters import ParameterError
from tests.batch import bodies, toy
from tests.slurm_cluster import lacking, slurm_cluster, without_slow_imports
from tests.whole_run import check_that_the_command_line_makes_a_run

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory):
    assert not lacking(), "run `make test-slurm`, which installs Slurm"
    folder = tmp_path_factory.mktemp("slurm")
    without_slow_imports(tmp_path_factory.mktemp("shim"))
    with slurm_cluster(folder) as configuration:
        os.environ["SLURM_CONF"] = str(configuration)
        yield
        del os.environ["SLURM_CONF"]


@pytest.fixture
def executor():
    from c3po_utils.batch.slurm_executor import SlurmExecutor

    made = []

    def make(slots=0, body=bodies.run, **settings):
        made.append(SlurmExecutor(slots, body=body, **{"time_min": 30, **settings}))
        return made[-1]

    yield make
    for one in made:
        one.stop()
    bodies.until(lambda: not queue())


def task(folder, name="one", **config):
    return Task({"run": str(folder), **config}, name)


def queue(columns="%i %T"):
    listed = subprocess.run(["squeue", "--array", "--noheader", f"--format={columns}"], capture_output=True, text=True)
    return [line.split() for line in listed.stdout.splitlines()]


def requeue(folder):
    """Of the one job that runs; waits until it does not run any more."""
    bodies.until(lambda: bodies.noted(folder, "started"))
    subprocess.run(["scontrol", "requeue", queue()[0][0]], check=True)
    bodies.until(lambda: queue()[0][1] == "PENDING")


def test_tasks_that_come_together_are_one_array(executor, tmp_path):
    slurm = executor()
    futures = [slurm.submit(task(tmp_path, f"job{number}")) for number in range(6)]
    assert [future.result(120).status for future in futures] == ["done"] * 6
    assert sorted(name for name, _ in bodies.noted(tmp_path, "ended")) == [f"job{number}" for number in range(6)]
    assert len(list((tmp_path / "slurm").glob("*_submission.sh"))) == 1


def test_a_graph_goes_through_the_driver_and_a_failure_leaves_the_others_alone(executor, tmp_path):
    toy.check_that_a_failure_leaves_the_others_alone(tmp_path / "run", executor(body=toy.run_toy))


def test_the_command_line_makes_a_run_on_a_cluster(tmp_path, own_feedback, tiny_folder):
    check_that_the_command_line_makes_a_run(tmp_path, own_feedback, str(tiny_folder), "slurm", time_min=10)


def test_a_requeued_job_starts_again_and_counts_once(executor, tmp_path):
    future = executor().submit(task(tmp_path, seconds=300, until="go"))
    requeue(tmp_path)
    (tmp_path / "go").touch()
    assert future.result(240).status == "done"
    assert len(bodies.noted(tmp_path, "started")) == 2
    assert len(bodies.noted(tmp_path, "ended")) == 1


def test_a_job_that_is_requeued_too_often_fails(executor, tmp_path):
    future = executor(requeues=0).submit(task(tmp_path, seconds=300))
    requeue(tmp_path)
    outcome = future.result(240)
    assert (outcome.status, "expected 0 at most" in outcome.error) == ("failed", True)


def test_a_cancelled_job_is_lost(executor, tmp_path):
    future = executor().submit(task(tmp_path, seconds=300))
    bodies.until(lambda: bodies.noted(tmp_path, "started"))
    subprocess.run(["scancel", queue()[0][0]], check=True)
    outcome = future.result(120)
    assert (outcome.status, "CANCELLED" in outcome.error) == ("lost", True)


def test_a_killed_process_is_lost(executor, tmp_path):
    future = executor().submit(task(tmp_path, seconds=300))
    bodies.until(lambda: bodies.noted(tmp_path, "started"))
    os.kill(int(bodies.noted(tmp_path, "started")[0][1]), 9)
    outcome = future.result(120)
    assert (outcome.status, "FAILED" in outcome.error) == ("lost", True)


def test_an_urgent_job_preempts_ours_which_ends_later(executor, tmp_path):
    future = executor(cpus=4).submit(task(tmp_path, seconds=300, until="go"))
    bodies.until(lambda: bodies.noted(tmp_path, "started"))
    urgent = ["srun", "--partition=urgent", "--time=1", "--cpus-per-task=4", "sleep", "1"]
    subprocess.run(urgent, check=True, timeout=120)
    (tmp_path / "go").touch()
    outcome = future.result(240)
    assert (outcome.status, outcome.error) == ("done", "")
    assert len(bodies.noted(tmp_path, "started")) == 2


def test_stop_cancels_what_runs_and_what_waits_within_five_seconds(executor, tmp_path):
    slurm = executor(cpus=3)
    futures = [slurm.submit(task(tmp_path, f"job{number}", seconds=300)) for number in range(2)]
    bodies.until(lambda: bodies.noted(tmp_path, "started"))
    start = time.monotonic()
    slurm.stop()
    assert time.monotonic() - start < 5
    assert [future.result(0).status for future in futures] == ["lost", "lost"]
    bodies.until(lambda: not queue(), 15)
    assert slurm.submit(task(tmp_path)).result(0).status == "lost"


def test_what_slurm_will_never_start_is_said(executor, tmp_path):
    outcome = executor(time_min=1000).submit(task(tmp_path)).result(60)
    assert (outcome.status, outcome.error) == ("failed", "Slurm would never start it: PartitionTimeLimit")
    outcome = executor(partition="nowhere").submit(task(tmp_path)).result(60)
    assert outcome.status == "failed"
    assert "invalid partition" in outcome.error


def test_a_body_that_raises_fails(executor, tmp_path):
    outcome = executor(body=bodies.raises).submit(task(tmp_path)).result(60)
    assert (outcome.status, "a body that raises" in outcome.error) == ("failed", True)


def test_an_unknown_parameter_is_named_with_the_nearest(executor):
    with pytest.raises(ParameterError, match=r"unknown 'partitoin'.*did you mean 'partition'"):
        executor(partitoin="gpu")
