"""Which executor a run's settings name; each is imported when it is wanted, as it may need an extra."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from c3po_utils.batch.tasks import Executor
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError, nearest

EXECUTORS = {  # module in this room, and class
    "local": ("local", "LocalExecutor"),
    "ray": ("ray_executor", "RayExecutor"),
    "slurm": ("slurm_executor", "SlurmExecutor"),
    "modal": ("modal_executor", "ModalExecutor"),
}


def open_executor(config: RunConfig) -> Executor:
    """`Class(config.workers or 0, **config.executor_settings)`; 0: as many at one time as the executor finds good.

    Raises:
        ParameterError: the executor's library is not installed (says which extra brings it), or settings that the
            executor does not have.
    """
    name, settings = config.executor, config.executor_settings
    module, kind_name = EXECUTORS[name]
    kind = getattr(import_module(f"c3po_utils.batch.{module}"), kind_name)
    _refuse_unknown(name, settings, inspect.signature(kind).parameters)
    try:
        return kind(config.workers or 0, **settings)
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"executor {name!r} needs the package {error.name!r}: expected the extra {name!r} to be installed"
            f" (pip install 'c3po-utils[{name}]')"
        ) from error


def _refuse_unknown(name: str, settings: dict[str, Any], parameters: Mapping[str, inspect.Parameter]) -> None:
    """Names that the executor's class does not have; one that passes others on checks those itself."""
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return
    known = [key for key in parameters if key not in ("slots", "body")]
    for key in settings:
        if key not in known:
            raise ParameterError(f"executor_settings of {name!r}: unknown setting {key!r} ({nearest(key, known)})")
