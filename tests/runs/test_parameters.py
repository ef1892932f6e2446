"""Parameters are checked before a kernel starts, by plain papermill too."""

from __future__ import annotations

from pathlib import Path

import nbformat
import papermill
import pytest

from c3po_utils.runs.jobs import NOTEBOOKS
from c3po_utils.runs.papermill_engine import LocalKernelManager
from c3po_utils.runs.parameters import ParameterError, declared, resolve

TRAIN = NOTEBOOKS / "02_train.ipynb"


def test_declared_reads_types_and_defaults():
    found = declared(nbformat.read(TRAIN, as_version=4))
    assert found["method"] == (str, "c3po")
    assert found["training_arguments"] == (dict, {})


def test_given_values_replace_defaults_and_integers_serve_as_floats():
    values = resolve(TRAIN, {"method": "dpo", "epochs": 2})
    assert (values["method"], values["epochs"], values["seed"]) == ("dpo", 2, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"metod": "dpo"}, "unknown parameter 'metod'.*did you mean 'method'"),
        ({"batch_size": "8"}, "parameter 'batch_size': expected int, found '8'"),
        ({"batch_size": 2.5}, "expected int, found 2.5"),
        ({"method_settings": []}, "expected dict"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ParameterError, match=message):
        resolve(TRAIN, given)


def test_plain_papermill_refuses_before_a_kernel_starts(tmp_path):
    output = tmp_path / "out.ipynb"
    with pytest.raises(ParameterError, match="did you mean 'learning_rate'"):
        papermill.execute_notebook(TRAIN, output, parameters={"learning_rat": 1e-4}, progress_bar=False)
    assert not output.exists()


def test_notebooks_of_others_run_unchecked(tmp_path):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell("x: int = 1", metadata={"tags": ["parameters"]})]
    )
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "other.ipynb")
    papermill.execute_notebook(
        tmp_path / "other.ipynb", tmp_path / "out.ipynb", parameters={"y": 2}, progress_bar=False
    )


def test_kernels_that_start_together_have_files_of_their_own():
    one, other = LocalKernelManager(), LocalKernelManager()
    assert one.ip != other.ip
    assert Path(one.ip).parent.is_dir()
