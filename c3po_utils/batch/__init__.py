"""Batches of notebooks: the job graph of a run, its driver, and the executors that run jobs here or elsewhere.

In: a run's settings. Out: finished stages, on one machine, a Ray cluster, Slurm or Modal. Stands on top of all rooms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "collect",
        "driver",
        "executors",
        "forecast",
        "graph",
        "lists",
        "local",
        "lock",
        "notebook",
        "plans",
        "progress",
        "share",
        "states",
        "tasks",
        "work",
    ],
    submod_attrs={
        "tasks": ["Executor", "Outcome", "Resources", "Task"],
        "executors": ["open_executor"],
        "work": ["run_task"],
        "driver": ["RunFailed", "run_notebooks"],
    },
)
