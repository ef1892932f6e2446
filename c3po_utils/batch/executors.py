"""Which executor a run's settings name; each is imported when it is wanted, as it may need an extra."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any, get_type_hints

from c3po_utils.batch.tasks import Executor
from c3po_utils.runs import parameters
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError
from c3po_utils.runs.sweeps import at

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
            executor does not have or that are of another kind.
    """
    name, settings = config.executor, config.executor_settings
    module, kind_name = EXECUTORS[name]
    kind = getattr(import_module(f"c3po_utils.batch.{module}"), kind_name)
    with at(f"executor_settings of {name!r}"):
        settings = _checked(settings, kind)
    try:
        return kind(config.workers or 0, **settings)
    except ModuleNotFoundError as error:
        raise ParameterError(
            f"executor {name!r} needs the package {error.name!r}: expected the extra {name!r} to be installed"
            f" (pip install 'c3po-utils[{name}]')"
        ) from error


def _checked(settings: dict[str, Any], kind: type[Executor]) -> dict[str, Any]:
    """The settings as the executor's class wants them. What it passes on to others is checked there."""
    types, given = get_type_hints(kind.__init__), inspect.signature(kind).parameters.values()
    own = {one.name: types[one.name] for one in given if one.kind is one.KEYWORD_ONLY and one.name != "body"}
    passes_on = any(one.kind is one.VAR_KEYWORD for one in given)
    passed_on = {key: value for key, value in settings.items() if passes_on and key not in own}
    checked = {key: value for key, value in settings.items() if key not in passed_on}
    return parameters.checked(checked, own, "setting") | passed_on
