import sys

import pytest

from c3po_utils.batch import Resources, open_executor
from c3po_utils.batch.ray_executor import RayExecutor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError


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


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:port"])
def test_an_address_where_no_cluster_is_is_refused_at_once(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))  # refused before Ray is asked, which tries for minutes
    with pytest.raises(ParameterError, match=f"no Ray cluster at '{address}': expected host:port"):
        RayExecutor(address=address)


def test_the_least_that_tasks_ask_for_is_taken_resource_by_resource():
    assert Resources(4, 0, 2.5).at_least(Resources(1, 0.5, 1)) == Resources(4, 0.5, 2.5)
