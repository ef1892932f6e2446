"""The project's own files hold together: pins, layout, notebooks, README."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from c3po_utils import cli
from c3po_utils.cli_run import runs_of
from c3po_utils.runs import parameters
from c3po_utils.runs.config import load_config
from c3po_utils.runs.jobs import train_values
from c3po_utils.training import trained_methods
from tests.speed import in_time

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


TOOLS = {  # declared, and imported by others on our behalf
    "tabulate": "pandas, to write tables in Markdown",
    "jupyterlab": "where the notebooks are read and run",
}


def test_dependencies_are_what_is_imported():
    """Every third-party package that is imported is declared, and every declared one is imported or a tool."""
    paths = [*(ROOT / "c3po_utils").rglob("*.py"), *NOTEBOOKS]
    nodes = [node for path in paths for node in ast.walk(_tree(path))]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    tops = {name.partition(".")[0] for name in names} - sys.stdlib_module_names - {"c3po_utils"}
    providers = importlib.metadata.packages_distributions()
    imported = {canonicalize_name(providers.get(top, [top])[0]) for top in tops}
    extras = project()["optional-dependencies"]
    executors = [text for extra in ("ray", "slurm", "modal") for text in extras[extra]]
    declared = {canonicalize_name(Requirement(text).name) for text in [*project()["dependencies"], *executors]}
    assert imported - declared == set(), "imported, and not declared"
    assert declared - imported == TOOLS.keys(), "declared, and not imported"


def test_conda_installs_the_same_lock(tmp_path):
    """pip is given what conda would hand over: the list as a requirements file beside environment.yml."""
    listed = next(
        entry["pip"]
        for entry in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
        if isinstance(entry, dict)
    )
    assert listed == ["-r requirements.lock", "-e ."]
    handed = tmp_path / "condaenv.requirements.txt"
    handed.write_text("\n".join(listed).replace("requirements.lock", str(ROOT / "requirements.lock")))
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "-r", handed]
    offline = {
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # 0: no isolation
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **offline}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert project()["requires-python"] == ">=3.11"


def test_make_notices_an_environment_that_differs_from_the_lock(tmp_path):
    check = re.search(r"^SATISFIED := (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)[1]
    command = [sys.executable, *check.removeprefix("$(BIN)/python").split(), "-r"]
    (tmp_path / "lock").write_text("packaging==0.1\n")
    assert subprocess.run([*command, tmp_path / "lock"], capture_output=True).returncode
    assert subprocess.run([*command, ROOT / "requirements.lock"], capture_output=True).returncode == 0


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


PARAMS = ROOT / "notebooks" / "params"


@pytest.mark.parametrize("path", sorted(PARAMS.glob("runs/*.yaml")), ids=lambda path: path.stem)
def test_a_runs_file_names_parameters_that_exist(path):
    config = load_config(path)
    parameters.resolve(ROOT / "notebooks" / "01_sample.ipynb", config.sample)
    parameters.resolve(ROOT / "notebooks" / "03_evaluate.ipynb", config.evaluate)
    for differences_of_one in (config.train, *config.train_methods.values()):
        parameters.resolve(ROOT / "notebooks" / "02_train.ipynb", differences_of_one)


def commands_in(path: Path) -> list[list[str]]:
    """The arguments of every `c3po` command in a page's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [line[at + 1 :] for line in words for at, word in enumerate(line) if Path(word).name == "c3po"]


@pytest.mark.parametrize("command", commands_in(PARAMS / "README.md"), ids=" ".join)
def test_commands_in_the_page_about_runs_are_valid(command):
    """They parse, and the run that they name loads with its overrides and its sweep."""
    group = cli.c3po
    name, *arguments = command
    parsed = group.commands[name].make_context(name, arguments, resilient_parsing=False)
    if "overrides" in parsed.params:
        given = {key: parsed.params[key] for key in ("run", "overrides", "sweep")}
        for config in runs_of(**given, sweep_file=None):
            assert config.methods
            for method in trained_methods(config.methods):
                train_values(config, "boss_signoff", method)


@pytest.mark.parametrize("path", sorted(PARAMS.glob("methods/*.yaml")), ids=lambda path: path.stem)
def test_a_methods_file_is_for_02_train_and_the_runner_says_so(path):
    values = yaml.safe_load(path.read_text())
    parameters.resolve(ROOT / "notebooks" / "02_train.ipynb", values)
    with pytest.raises(parameters.ParameterError, match=f"changes the method '{values['method']}'.*papermill 02_train"):
        load_config(path)


def test_rooms_import_one_another_through_their_doors():
    """Names come from a room's door; what is no name of a door is called as `module.name`."""
    for path in sorted((ROOT / "c3po_utils").rglob("*.py")) + NOTEBOOKS:
        room = path.relative_to(ROOT).parts[1]
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("c3po_utils."):
                _, other, *inside = node.module.split(".")
                assert other == room or inside in ([], ["openai"], ["vllm"]) or _is_top(room, path), (
                    f"{path}: {node.module}"
                )


def _is_top(room: str, path: Path) -> bool:
    """Whether a module stands above all rooms."""
    if room == "batch":
        return True
    above = ("config", "jobs", "check", "doctor", "estimate", "papermill_engine", "reference", "reference_configs")
    return path.stem.startswith(("cli", "__main__")) or (room == "runs" and path.stem in above)


def _tree(path: Path) -> ast.Module:
    if path.suffix == ".py":
        return ast.parse(path.read_text())
    cells = nbformat.read(path, as_version=4).cells
    return ast.parse("\n".join(cell.source for cell in cells if cell.cell_type == "code"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_goes_through_at_most_three_rooms(path):
    imports = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.ImportFrom)]
    assert len({node.module for node in imports if node.module.startswith("c3po_utils")}) <= 3


@pytest.mark.parametrize("room", [path.parent.name for path in (ROOT / "c3po_utils").glob("*/__init__.py")])
def test_a_door_says_what_comes_in_and_goes_out_and_has_few_names(room):
    door = importlib.import_module(f"c3po_utils.{room}")
    folder = ROOT / "c3po_utils" / room
    modules = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    assert 5 <= len(set(door.__all__) - modules) <= 8
    assert "\nIn: " in door.__doc__
    assert " Out: " in " ".join(door.__doc__.split())
    assert all(getattr(door, name) is not None for name in door.__all__)


@pytest.mark.quiet
def test_the_floor_below_all_rooms_is_imported_at_once():
    """What clients of a run's files pay: no library of models, half a second at most."""
    in_time(0.5, "import c3po_utils.runs; c3po_utils.runs.Stage, c3po_utils.runs.run_folder")
    script = "import sys, c3po_utils.batch.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0, "the runner plans without torch"


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


def test_an_installed_package_brings_all_feedback_notebooks_and_parameters_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    for package, folder in project["package-dir"].items():
        taken = {path for pattern in project["package-data"][package] for path in (ROOT / folder).glob(pattern)}
        there = {
            path for path in (ROOT / folder).rglob("*") if path.suffix in {".ipynb", ".yaml", ".json", ".jsonl", ".csv"}
        }
        assert taken >= there - set((ROOT / folder).rglob(".ipynb_checkpoints/*")), package


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(900)
def test_an_installed_package_runs_from_anywhere(tmp_path):
    """The wheel in a fresh environment, far from any checkout: it brings notebooks, feedback and parameters along."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "-qq"]
    subprocess.run([*pip, "install", "-r", ROOT / "requirements.lock"], check=True)
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, ROOT], check=True)
    subprocess.run([*pip, "install", "--no-deps", *tmp_path.glob("*.whl")], check=True)
    command = [environment / "bin" / "python", "-m", "c3po_utils", "run", "smoke"]
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "C3PO_ROOT")}
    done = subprocess.run(command, cwd=tmp_path, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "results" / "smoke" / "figures" / "table2.csv").exists()
