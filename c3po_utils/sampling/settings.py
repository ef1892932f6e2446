"""The settings of a sample: models, amounts, how answers are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, get_type_hints

from c3po_utils.chat import Sampling, names, vllm
from c3po_utils.runs import nearest, parameters
from c3po_utils.sampling.deduplicated import Effort

STRATEGIES = ("demonstrate", "revise")


@dataclass(frozen=True)
class SampleSettings:
    """What decides the sampled data besides the feedback itself.

    Raises:
        ValueError: a value that cannot be meant.
    """

    model: str  # pi_0
    strategy: str = "demonstrate"  # how y+ is made: `demonstrate` (few-shot) or `revise` (the paper's)
    best_of: int = 8  # tries per y+; the first that passes the metric is kept. 0: one, kept whether or not it passes
    categories: int = 10
    prompts_per_category: int = 6
    system_prompt: str = "You are a helpful assistant. Reply in one or two short sentences."  # in every conversation
    max_new_tokens: int = 96  # answers are cut here
    seed: int = 0  # of the split and of all sampling
    category_model: str = ""  # thinks of categories: "" is the prompt model
    prompt_model: str = ""  # writes the prompts: "" takes the bundled ones
    completion_model: str = ""  # answers and revises: "" is pi_0, here
    general_prompts: str = "bundled"  # out of scope: `FILE.jsonl[:COLUMN]`, `hf:DATASET:SPLIT:COLUMN`
    allow_short: bool = False  # go on with fewer prompts or answers than asked for
    revise_elsewhere: bool = False  # revise near and out rows of the training fold, too: dpo_negatives rejects these
    effort: dict[str, Any] = field(default_factory=dict)  # of the prompt model: what differs from deduplicated.Effort
    test_share: float = parameters.later(0.3)  # of the categories: of ten, three, as clustered intervals need
    # What runs pi_0: local; vllm, started for this; or vllm@http://127.0.0.1:8000/v1, joined. The same weights answer.
    engine: str = parameters.passing(vllm.LOCAL)

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            found = self.strategy
            raise ValueError(f"strategy: expected one of {STRATEGIES}, found {found!r} ({nearest(found, STRATEGIES)})")
        least = {"best_of": 0, "categories": 2, "prompts_per_category": 1, "max_new_tokens": 1, "seed": 0}
        parameters.at_least(vars(self), least)
        if not 0 < self.test_share < 1:
            raise ValueError(f"test_share: expected a share between 0 and 1, found {self.test_share!r}")
        if vllm.read_engine(self.engine) is not None:
            if names.parse_model_name(self.answering).endpoint:
                raise ValueError(f"engine: {self.engine!r} runs weights of ours, and {self.answering!r} answers here")
            vllm.check_weights(self.answering)

    @classmethod
    def of(cls, options: dict[str, Any], **given: Any) -> SampleSettings:
        """The settings of a notebook's parameters, the rarely changed ones in `options`.

        Raises:
            ParameterError: an option that there is not (with the nearest that is), or of another type.
        """
        kinds = {name: kind for name, kind in get_type_hints(cls).items() if name not in given}
        settings = cls(**given, **parameters.checked(options, kinds, "option"))
        parameters.checked(settings.effort, get_type_hints(Effort), "effort")
        Effort(**settings.effort)
        return settings

    @property
    def answering(self) -> str:
        """Who answers and revises: the completion model, or pi_0 here."""
        return self.completion_model or self.model

    @property
    def sampling(self) -> Sampling:
        """The paper's settings for pi_0."""
        return Sampling(max_new_tokens=self.max_new_tokens, seed=self.seed)

    @property
    def demonstrating(self) -> Sampling:
        """Wider sampling for best-of-n: tries must differ for the first passing one to be likely."""
        return replace(self.sampling, temperature=0.9, top_p=0.9)
