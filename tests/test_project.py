"""The project's own files hold together: pins, layout, notebooks, README."""

from __future__ import annotations

import ast
import re
import statistics
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from c3po_utils import parameters
from c3po_utils.batch import RunConfig, read_config
from c3po_utils.setup_check import differences

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "requirements.lock").read_text(), flags=re.M))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lock_pins_every_line_and_every_dependency():
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line]
    assert len(lines) == len(PINS)
    pinned = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    extras = project()["optional-dependencies"]
    for text in [*project()["dependencies"], *extras["dev"], *extras["serve"]]:
        requirement = Requirement(text)
        assert requirement.specifier.contains(pinned[requirement.name.lower()]), text


def test_conda_installs_the_same_lock():
    pip = next(
        entry["pip"]
        for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(entry, dict)
    )
    assert "-r requirements.lock" in pip
    assert project()["requires-python"] == ">=3.11"


def test_setup_check_notices_a_package_that_differs(tmp_path):
    lock = tmp_path / "lock"
    lock.write_text("packaging==0.1\nno-such-package==1.0\n")
    assert [line.split(":")[0] for line in differences(lock)] == ["packaging", "no-such-package"]
    assert differences(ROOT / "requirements.lock") == []


def test_nothing_else_lies_at_top_level():
    allowed = {
        "notebooks", "c3po_utils", "feedback", "results", "tests", "environment.yml", "README.md", "pyproject.toml",
        "requirements.lock", "Makefile", "LICENSE",
    }  # fmt: skip
    ignored = {"build"}
    found = {
        path.name for path in ROOT.iterdir() if not path.name.startswith(".") and not path.name.endswith(".egg-info")
    }
    assert found - ignored <= allowed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_cells_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    lengths = [len(cell.source.splitlines()) for cell in code]
    assert max(lengths) <= 25
    assert statistics.median(lengths) <= 8
    for cell in code:
        tree = ast.parse("\n".join(line for line in cell.source.splitlines() if not line.startswith("%")))
        forbidden = [
            type(node).__name__ for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Try)
        ]
        assert not forbidden, cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_parameters_are_literals_with_help(path):
    notebook = nbformat.read(path, as_version=4)
    source = next(cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    assert len(parameters.declared(notebook)) == len(source.splitlines()) <= 10
    assert all("  # " in line for line in source.splitlines())
    assert notebook.metadata["c3po"]["checked_parameters"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks" / "params").glob("*.yaml")), ids=lambda path: path.stem)
def test_parameter_files_name_parameters_that_exist(path):
    values = read_config(path)
    if "methods" not in values:  # differences for one notebook, for `papermill -f`
        parameters.resolve(ROOT / "notebooks" / "02_train.ipynb", values)
        return
    config = RunConfig.model_validate(values)
    parameters.resolve(ROOT / "notebooks" / "01_sample.ipynb", config.sample)
    parameters.resolve(ROOT / "notebooks" / "03_evaluate.ipynb", config.evaluate)
    for differences_of_one in (config.train, *config.train_methods.values()):
        parameters.resolve(ROOT / "notebooks" / "02_train.ipynb", differences_of_one)


def test_links_in_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_in_the_readme_exist():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"`?make (\w+)`", (ROOT / "README.md").read_text())) <= targets


def test_the_readmes_table_is_the_published_one():
    table = (ROOT / "results" / "embedded" / "table2.md").read_text().strip()
    assert table in (ROOT / "README.md").read_text()
