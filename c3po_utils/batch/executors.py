"""Which executor a run's settings name; each is imported when it is wanted, as it may need an extra."""

from __future__ import annotations

from importlib import import_module

from c3po_utils.batch.tasks import Executor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError

EXECUTORS = {"local": "LocalExecutor", "ray": "RayExecutor", "slurm": "SlurmExecutor", "modal": "ModalExecutor"}


def open_executor(config: RunConfig) -> Executor:
    """`Class(config.workers or 0, **config.executor_settings)`; 0: as many at one time as the executor finds good.

    Raises:
        ParameterError: the executor's library is not installed (says which extra brings it), or settings that the
            executor does not have.
    """
    name = config.executor
    module = "local" if name == "local" else f"{name}_executor"
    try:
        kind = getattr(import_module(f"c3po_utils.batch.{module}"), EXECUTORS[name])
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"executor {name!r} needs the package {error.name!r}: expected the extra {name!r} to be installed"
            f" (pip install 'c3po-utils[{name}]')"
        ) from error
    try:
        return kind(config.workers or 0, **config.executor_settings)
    except TypeError as error:
        raise ParameterError(f"executor_settings of {name!r}: {error}") from error
