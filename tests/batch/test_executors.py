import sys
from types import SimpleNamespace

import pytest

from c3po_utils.batch import Resources, Task, open_executor, ray_executor, slurm_executor
from c3po_utils.batch.ray_executor import RayExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError
from tests.batch import bodies


def opened(executor, **settings):
    return open_executor(RunConfig(run="results/x", methods=["c3po"], executor=executor, executor_settings=settings))


@pytest.mark.parametrize(("executor", "package"), [("ray", "ray"), ("slurm", "submitit"), ("modal", "modal")])
def test_a_missing_library_says_which_extra_brings_it(executor, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ParameterError, match=rf"'{executor}' needs the package '{package}'.*c3po-utils\[{executor}\]"):
        opened(executor)


@pytest.mark.parametrize(
    ("executor", "given", "near"), [("ray", "adress", "address"), ("modal", "gpus", "gpu"), ("local", "gpu", None)]
)
def test_an_unknown_setting_is_named_with_the_nearest(executor, given, near):
    with pytest.raises(ParameterError, match=f"unknown setting '{given}'") as refused:
        opened(executor, **{given: "x"})
    if near:
        assert f"did you mean '{near}'?" in str(refused.value)


@pytest.mark.parametrize(
    ("executor", "given", "value", "expected"),
    [
        ("ray", "environment", "OPENAI_API_KEY", r"list\[str\]"),
        ("ray", "runtime_env", "pip", "dict"),
        ("ray", "cpus", "many", "int"),
        ("modal", "timeout_min", 1.5, "int"),
        ("local", "warm", "yes", "bool"),
    ],
)
def test_a_setting_of_another_kind_is_refused_before_a_cluster_is_asked(executor, given, value, expected):
    refusal = f"executor_settings of '{executor}': setting '{given}': expected .*({expected}).*, found {value!r}"
    with pytest.raises(ParameterError, match=refusal):
        opened(executor, **{given: value})


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))  # refused before Ray is asked, which tries for minutes
    with pytest.raises(ParameterError, match=f"no Ray cluster at '{address}': expected host:port"):
        RayExecutor(address=address)


def test_the_least_that_tasks_ask_for_is_taken_resource_by_resource():
    assert Resources(4, 0, 2.5).at_least(Resources(1, 0.5, 1)) == Resources(4, 0.5, 2.5)


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A job that a stand-in for submitit sent to a Slurm, of which only sbatch can be started (others: `program`)."""

    class Submits:
        def __init__(self, folder, python):
            self.jobs = [
                SimpleNamespace(job_id="7", paths=SimpleNamespace(result_pickle=tmp_path / "7", stderr="7.err"))
            ]

        def update_parameters(self, **_):
            pass

        def map_array(self, body, tasks):
            return self.jobs

        _valid_parameters = staticmethod(set)

    for name in ("GATHER_S", "STATES_S"):
        monkeypatch.setattr(slurm_executor, name, 0.01)
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=Submits))
    monkeypatch.setenv("PATH", str(tmp_path))
    program(tmp_path, "sbatch", "")
    executor = slurm_executor.SlurmExecutor(folder=str(tmp_path))
    future = executor.submit(Task({}, "one"))
    bodies.until(lambda: executor._jobs)
    yield executor, future
    executor.stop()


def program(folder, name, says):
    new = folder / f"new {name}"
    new.write_text(f"#!/bin/sh\n{says}\n")
    new.chmod(0o755)
    new.rename(folder / name)


def test_a_squeue_that_cannot_be_started_is_asked_again_and_lines_that_say_nothing_are_passed_over(slurm, tmp_path):
    program(tmp_path, "squeue", "echo slurm_load_jobs error; echo '7|CANCELLED|None'")
    assert slurm[1].result(30).error == "Slurm's job 7: CANCELLED; log: 7.err"


def test_stop_ends_every_task_also_where_scancel_cannot_be_started(slurm):
    executor, future = slurm
    executor.stop()
    assert (future.result(0).status, future.result(0).error) == ("lost", "the executor was stopped")


def test_variables_of_this_machine_reach_workers_and_must_be_set(monkeypatch):
    monkeypatch.setenv("TEA", "hot")
    made = ray_executor._with_variables({"pip": ["x"], "env_vars": {"MILK": "no"}}, ["TEA"])
    assert made == {"pip": ["x"], "env_vars": {"MILK": "no", "TEA": "hot"}}
    assert ray_executor._with_variables({"env_vars": None}, ["TEA"]) == {"env_vars": {"TEA": "hot"}}
    assert ray_executor._with_variables(None, None) is None
    with pytest.raises(ParameterError, match="'SUGAR' is not set here"):
        ray_executor._with_variables(None, ["SUGAR"])
