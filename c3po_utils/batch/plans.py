"""What a run's plan looks like in a terminal."""

from __future__ import annotations

from c3po_utils.batch import forecast
from c3po_utils.batch.forecast import Line, Rates
from c3po_utils.batch.graph import Nodes, finished
from c3po_utils.batch.share import stored
from c3po_utils.engine import names
from c3po_utils.runs import jobs, run_folder, shown, tables
from c3po_utils.runs.config import RunConfig

NEXT = 5  # jobs that are named


def told(config: RunConfig, nodes: Nodes, tokens_per_s: tuple[float, float] | None = None) -> str:
    """The jobs by kind, what comes next, and how time, tokens and cost were estimated."""
    done = finished(nodes)
    model = jobs.sample_settings(jobs.sample_values(config, jobs.feedback_names(config)[0])).model
    rates = Rates(*tokens_per_s) if tokens_per_s else Rates() if model == names.EMBEDDED else None
    lines = forecast.forecast(config, nodes, done, rates)
    coming = [name for name, node in nodes.items() if name not in done and done.issuperset(node.needs)]
    return "\n".join(
        [
            f"{shown(run_folder(config.run))}: {len(nodes):,} jobs, {len(done):,} done",
            tables.aligned([_row(line) for line in lines]),
            *_in_store(config, nodes, done),
            *([f"next: {', '.join(coming[:NEXT])}" + (", ..." if len(coming) > NEXT else "")] if coming else []),
            *_in_all(config, lines),
            *_how(lines, model, rates),
        ]
    )


def _in_store(config: RunConfig, nodes: Nodes, done: set[str]) -> list[str]:
    if not config.store:
        return []
    there = len(stored(config, nodes) - done)
    return [
        f"in {config.store}: {there:,} of those left; they come here first, and what is not up to date is made anew"
    ]


def _row(line: Line) -> dict[str, str]:
    takes = line.takes
    return {
        "kind": line.kind,
        "jobs": f"{line.jobs:,}",
        "done": f"{line.done:,}",
        "each": _time(line.each_s),
        "left": _time(line.left_s),
        "calls": f"{takes.calls:,}",
        "prompt tokens": f"{takes.prompt_tokens:,}",
        "answer tokens": f"{takes.answer_tokens:,}",
        "USD": "?" if takes.usd is None else f"{takes.usd:,.2f}",
    }


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"


def _in_all(config: RunConfig, lines: list[Line]) -> list[str]:
    times, costs = [line.left_s for line in lines], [line.takes.usd for line in lines]
    if None in times:
        unknown = [line.kind for line in lines if line.left_s is None]
        work = f"time unknown ({', '.join(unknown)})"
    else:
        work = f"{_time(sum(filter(None, times)))} of work"
        if config.workers and config.workers > 1:
            work += f", about {_time(sum(filter(None, times)) / config.workers)} with {config.workers} jobs at a time"
    cost = "cost unknown (no price given)" if None in costs else f"at most {sum(filter(None, costs)):,.2f} USD"
    return [f"still to come: {work}; {cost}"]


def _how(lines: list[Line], model: str, rates: Rates | None) -> list[str]:
    """Where times are from; tokens are a bound, whatever."""
    left = [line for line in lines if line.left]
    measured = [f"{line.kind} as {line.measured} finished" for line in left if line.measured]
    ruled = [line.kind for line in left if not line.measured and line.each_s is not None]
    unknown = [line.kind for line in left if line.each_s is None]
    told = [f"times: {', '.join(measured)}"] if measured else []
    if ruled and rates:
        told.append(
            f"times by rule: {', '.join(ruled)}: {forecast.JOB_S:.0f} s a job, {rates.trained:,.0f} tokens/s trained,"
            f" {rates.answered:,.0f} tokens/s answered, every answer as long as it may be"
            + (", APIs' own time not counted" if any(line.takes != line.here for line in left) else "")
        )
    if unknown:
        told.append(f"no rate is known for {model}: see --tokens-per-s")
    return told
