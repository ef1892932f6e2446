"""What a driver hands to an executor, and what comes back: plain data that can travel to another machine."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import astuple, dataclass, field
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Resources:
    """What one job asks of a machine."""

    cpus: int = 1
    gpus: float = 0
    memory_gib: float = 0  # 0: unknown

    def at_least(self, other: Resources) -> Resources:
        """The greater of both, resource by resource."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Resources(*(max(pair) for pair in pairs))


@dataclass(frozen=True)
class Task:
    """One job of a run's graph, by name: the machine that runs it makes the rest from the run's settings."""

    config: dict[str, Any]  # RunConfig.model_dump()
    name: str  # train/boss_signoff/c3po
    store: str = ""  # fsspec URL of the run's folder, where machines share no disk
    resources: Resources = field(default_factory=Resources)


@dataclass(frozen=True)
class Outcome:
    """How a task ended: `failed` by its own fault, with the failing cell's error; `lost` with the machine it ran on."""

    name: str
    status: Literal["done", "failed", "lost"]
    error: str = ""
    wall_s: float = 0.0
    host: str = ""


def stopped(task: Task) -> Outcome:
    """Of a task whose executor was stopped before it ended."""
    return Outcome(task.name, "lost", "the executor was stopped")


class Executor(Protocol):
    """Runs tasks somewhere, each by `work.run_task`, the one body of every job."""

    slots: int  # tasks at one time

    def submit(self, task: Task) -> Future[Outcome]:
        """Start it as soon as there is room. The future never raises: what went wrong is in its outcome."""
        ...

    def stop(self) -> None:
        """End all that runs or waits, within five seconds; safe to call twice."""
        ...
