"""What can be known to be wrong before a kernel starts, of a run or of one notebook. Imports no library of models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, get_args

from c3po_utils import chat, engine  # as rooms: their heavy parts are imported when they are used
from c3po_utils.chat.openai.limits import read_limits
from c3po_utils.evaluation import evaluate, playground, scores
from c3po_utils.feedback import find_feedback, general, records
from c3po_utils.runs import jobs, remote
from c3po_utils.runs.config import RunConfig
from c3po_utils.runs.parameters import ParameterError, nearest
from c3po_utils.runs.stage import Stage, run_folder
from c3po_utils.sampling import members, rows, sample
from c3po_utils.training import methods as known_methods
from c3po_utils.training import registered, trained_methods

PLAYGROUND = "08_playground.ipynb"  # of no run's jobs


@contextlib.contextmanager
def _said_of(place: str) -> Iterator[None]:
    """Whatever is wrong is one kind of error, which begins with the place."""
    try:
        yield
    except (ValueError, KeyError, TypeError, OSError) as error:
        text = str(error.args[0]) if isinstance(error, KeyError) else str(error)
        raise ParameterError(f"{place}: {text}") from error


def check(config: RunConfig) -> None:
    """Refuse now what would otherwise be found after hours of sampling and training.

    Raises:
        ParameterError: which key, what was found, what was expected, the nearest valid name.
    """
    refuse_secrets(config.model_dump())
    if config.sweep:
        raise ParameterError(f"{config.place('sweep')}: expected settings that `config.load_runs` has expanded")
    with _said_of(config.place("run")):
        run_folder(config.run)
    if config.store:
        with _said_of(config.place("store")):
            remote.check_url(config.store)
    with _said_of(config.place("methods")):
        methods = _methods(config.methods)
    with _said_of(config.place("train_methods")):
        trained_methods(list(config.train_methods))
    names = _selected(config)
    with _said_of(config.place("two_feedbacks")):
        for run in jobs.two_feedbacks_runs(config):
            check_two_feedbacks(jobs.two_feedbacks_values(config, *run))
    for name in names:
        with _said_of(config.place("sample")):
            check_sample(sampled := jobs.sample_values(config, name))
        with _said_of(config.place("evaluate")):
            check_evaluate(values := jobs.evaluate_values(config, name))
            if chat.vllm.read_engine(values["engine"]) is not None:
                chat.vllm.check_weights(sampled["model"])
    for place, method in enumerate(methods):
        with _said_of(config.place(f"{_key(config, method)}, method {method}")):
            values = jobs.train_values(config, names[0], method)
            check_train(values)
            objective = jobs.train_settings(values).objective
            for name in names[1:] if objective.nearby else ():
                check_train(jobs.train_values(config, name, method))
            for how, other in objective.needs.items():
                if other not in methods[:place]:
                    raise ValueError(f"it {how} {other!r}: name that before it in `methods`")
    _check_joint(config, names[0])
    with _said_of(config.place("figures")):
        check_figures(values := jobs.figures_values(config))
        if config.store and not run_folder(output := values["output"]).is_relative_to(run_folder(config.run)):
            raise ValueError(f"output: expected a folder in {config.run}, whose store it goes to; found {output!r}")


def _check_joint(config: RunConfig, name: str) -> None:
    """What a joint training needs is trained jointly, too."""
    joint = dict.fromkeys(method for _, method, how in jobs.two_feedbacks_runs(config) if how == "joint")
    for method in joint:
        with _said_of(config.place(f"two_feedbacks_methods, method {method}")):
            for does, other in jobs.train_settings(jobs.train_values(config, name, method)).objective.needs.items():
                if other not in joint:
                    raise ValueError(f"it {does} {other!r}: name that, too, in `two_feedbacks_methods`")


def _selected(config: RunConfig) -> list[str]:
    with _said_of(config.place("feedback_set")):
        known = jobs.known(config)
    with _said_of(config.place("feedbacks")):
        records.by_id(known, config.feedbacks or ())
    with _said_of(config.place("second_feedback")):
        records.by_id(known, filter(None, [config.second_feedback]))
    with _said_of(config.place("select" if config.select.model_fields_set else "feedbacks")):
        return jobs.feedback_names(config)


def _key(config: RunConfig, method: str) -> str:
    """Which key says how a method is trained."""
    return "train_methods" if {method, registered(method)} & config.train_methods.keys() else "train"


def lacking(config: RunConfig) -> list[str]:
    """What this machine lacks to run it: keys of APIs, weights that are neither here nor to be had."""
    values = jobs.sample_values(config, jobs.feedback_names(config)[0])
    settings = jobs.sample_settings(values)
    evaluating = jobs.evaluate_values(config, values["feedback"])
    used = (settings.model, settings.category_model, settings.prompt_model, settings.completion_model)
    names = dict.fromkeys(filter(None, (*used, evaluating["judge_model"])))
    engines = {settings.engine, evaluating["engine"]}
    return [reason for name in names if (reason := _lacks(name))] + [*filter(None, map(_lacks_engine, engines))]


def refuse(config: RunConfig) -> None:
    """Raise ParameterError for what is wrong with the settings, or lacking here to run them."""
    check(config)
    if missing := lacking(config):
        raise ParameterError("; ".join(missing))


def _lacks(name: str) -> str | None:
    if not name.startswith("openai:"):
        return engine.names.lacking(name)
    try:
        chat.keys.check_key(name)
    except ValueError as error:
        return str(error)
    return None


def _lacks_engine(engine: str) -> str | None:
    try:
        if engine == chat.vllm.VLLM:
            chat.vllm.program()
    except RuntimeError as error:
        return str(error)
    return None


def check_model(name: str, limits: dict[str, Any]) -> None:
    """Refuse a name that can be no model's, and limits that cannot be meant for it."""
    if name.startswith("openai:"):
        chat.open.check_model(name, **limits)
    else:
        engine.names.check_name(name)


def refuse_secrets(values: dict[str, Any]) -> None:
    """Refuse parameters that hold a key or a password: they are stored in executed notebooks and manifests.

    Raises:
        ParameterError: the parameter's name; never its value.
    """
    for name, value in values.items():
        if chat.keys.looks_like_secret({name: value}):
            raise ParameterError(
                f"parameter {name!r} holds what looks like a key or a password, which would be stored with the run:"
                " expected keys in the environment (OPENAI_API_KEY, C3PO_API_KEY)"
            )


def check_sample(values: dict[str, Any]) -> None:
    """The parameters of 01_sample."""
    read_limits(values["limits"])
    settings = jobs.sample_settings(values)
    for key in ("model", "category_model", "prompt_model", "completion_model"):
        if name := getattr(settings, key):
            with _said_of(key):
                check_model(name, values["limits"])
    run_folder(values["run"])
    feedback = find_feedback(values["feedback"])
    if rows.imported_sample(run_folder(values["run"]), feedback):
        sample.open_sample(run_folder(values["run"]), values["feedback"], settings)
        return
    if settings.strategy == "demonstrate" and not feedback.demonstrations:
        raise ValueError(f"feedback {feedback.id!r} has no demonstrations: add some, or use strategy 'revise'")
    if not settings.prompt_model:
        sample.bundled_prompts(values["feedback"])


def check_train(values: dict[str, Any]) -> None:
    """The parameters of 02_train."""
    run_folder(values["run"])
    _find_members(values["feedback"])
    _methods([values["method"]])
    if not trained_methods([values["method"]]):
        raise ValueError(
            f"method: {values['method']!r} is asked, not trained ({nearest(values['method'], known_methods.METHODS)})"
        )
    objective = jobs.train_settings(values).objective  # what is wrong is raised as they are made
    if objective.nearby:
        with _said_of("nearby"):
            if "#" in values["feedback"] and objective.nearby == "bundled":
                raise ValueError(f"none are bundled for {values['feedback']!r}: expected FILE.jsonl[:COLUMN]")
            general.unlabelled_texts(objective.nearby, members(records.feedback_id(values["feedback"])))


def check_evaluate(values: dict[str, Any]) -> None:
    """The parameters of 03_evaluate."""
    run_folder(values["run"])
    _methods(values["methods"])
    folder = run_folder(values["run"]) / "eval" / records.feedback_id(values["feedback"])
    evaluate.refuse_imported(Stage(folder / method, {}) for method in values["methods"])
    chat.vllm.read_engine(values["engine"])
    _check_judge(values, [values["feedback"]])


def check_two_feedbacks(values: dict[str, Any]) -> None:
    """The parameters of 04_two_feedbacks."""
    run_folder(values["run"])
    _methods([values["method"]])
    if values["how"] not in get_args(jobs.How):
        raise ValueError(f"how: expected one of {get_args(jobs.How)}, found {values['how']!r}")
    if not len(values["feedbacks"]) == len(set(values["feedbacks"])) == 2:
        raise ValueError(f"feedbacks: expected two different ones, found {values['feedbacks']}")
    _check_judge(values, values["feedbacks"])


def check_figures(values: dict[str, Any]) -> None:
    """The parameters of 05_figures."""
    for run in [*values["runs"], values["output"]]:
        run_folder(run)
    trained_methods([*values["methods"], *values["compare"]])
    with _said_of("compare"):
        _refuse_repeated(values["compare"])
    if len(values["compare"]) == 1:
        raise ValueError(f"compare: expected the methods that {values['compare'][0]!r} is compared with, found none")
    if values["uncertainty"] not in (known := get_args(scores.Uncertainty)):
        found = values["uncertainty"]
        raise ValueError(f"uncertainty: expected one of {known}, found {found!r} ({nearest(found, known)})")


def check_playground(values: dict[str, Any]) -> None:
    """The parameters of 08_playground."""
    for prompt in values["prompts"]:
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"prompts: expected texts, found {prompt!r}")
    mixes = [values["mix"]] if values["mix"] else []
    playground.open_playground(values["run"], values["feedback"], values["methods"], mixes)


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    jobs.SAMPLE: check_sample,
    jobs.TRAIN: check_train,
    jobs.EVALUATE: check_evaluate,
    jobs.TWO_FEEDBACKS: check_two_feedbacks,
    jobs.FIGURES: check_figures,
    PLAYGROUND: check_playground,
}


def check_notebook(notebook: str, values: dict[str, Any]) -> None:
    """Refuse parameters that are known to be wrong for this notebook (`02_train.ipynb`), whoever runs it.

    Raises:
        ParameterError: as in `check`.
    """
    if notebook in CHECKS:
        with _said_of(notebook):
            CHECKS[notebook](values)


def _check_judge(values: dict[str, Any], feedbacks: list[str]) -> None:
    judge = values["judge_model"]
    read_limits(values["limits"])
    if judge:
        with _said_of("judge_model"):
            check_model(judge, values["limits"])
    for name in feedbacks:
        evaluate.refuse_unscored(find_feedback(name), judge)


def _methods(methods: list[str]) -> list[str]:
    """The trained methods, all of which are known, each named once."""
    if not methods:
        raise ValueError("expected one method or more, found none")
    _refuse_repeated(methods)
    return trained_methods(methods)


def _refuse_repeated(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is named twice")


def _find_members(name: str) -> None:
    place = "".join(name.rpartition("#")[:2])
    for id in members(records.feedback_id(name)):
        find_feedback(place + id)
