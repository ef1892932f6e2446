"""The methods of the paper, each as what it changes in one objective."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from c3po_utils.runs import nearest
from c3po_utils.training.limits import Count, CountOrNone, NotNegative, Positive, Share, check_fields

SEGMENTS = ("chosen", "rejected", "near_scope", "out_of_scope")


@dataclass(frozen=True)
class Method:
    """Weights of the terms of one objective, and what else tells methods apart; the defaults are C3PO (eq. 5).

    preference * L_DPO(D_in) + chosen_sft_weight * L_SFT(y+) + out_weight * L_keep(D_out) + near_weight * L_keep(D_near)

    where L_keep = (1 - kl) * L_SFT + kl * KL(pi_0 || pi). A term of weight 0 costs nothing.

    The reference policy of the preference term is always pi_0, also where training starts from another adapter: it
    is pi_0 that wrote the rejected answers, which is what the theory (Appendix C) asks of a reference.
    """

    preference: NotNegative = 1.0
    chosen_sft_weight: NotNegative = 0.0
    out_weight: NotNegative = 0.2  # lambda_1
    near_weight: NotNegative = 0.1  # lambda_2
    beta: Positive = 0.1
    kl: Share = 0.0  # share of the divergence in the near and out terms; the rest is SFT
    kl_temperature: Positive = 1.0
    kl_summed: bool = False  # over an answer's tokens, instead of averaged
    kl_squared: bool = False  # the square of an answer's divergence
    near_ratio: NotNegative = 0.0  # near-scope rows put among the in-scope rows, for each of these, baseline as chosen
    out_ratio: NotNegative = 0.0  # likewise out-of-scope rows
    start: str = ""  # the method whose adapter training starts from
    max_prompts: CountOrNone = 0  # train on at most this many pairs; 0: on all
    only_passing: bool = False  # train only on pairs whose revision passes the feedback's metric
    max_length: Count = 1024  # longer examples, in tokens, are dropped
    max_dropped_share: Share = 0.1  # more unusable rows than this share stop the training before it starts

    def __post_init__(self) -> None:
        check_fields(self, "method setting")
        if not self.segments:
            raise ValueError("method settings: all terms have the weight 0, expected one or more above it")

    @property
    def segments(self) -> tuple[str, ...]:
        """The kinds of sequences the objective looks at."""
        used = {
            "chosen": self.preference or self.chosen_sft_weight,
            "rejected": self.preference,
            "near_scope": self.near_weight,
            "out_of_scope": self.out_weight,
        }
        return tuple(name for name in SEGMENTS if used[name])

    @property
    def rows(self) -> dict[str, Any]:
        """What the method asks of its rows: arguments of data.training_rows."""
        names = ("segments", "near_ratio", "out_ratio", "max_prompts", "max_length", "max_dropped_share")
        return {name: getattr(self, name) for name in names}

    @property
    def differences(self) -> dict[str, Any]:
        """The fields that differ from C3PO's defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def equation(self) -> str:
        """The objective in LaTeX, with the weights in force; terms of weight 0 are left out.

        Mixed-in rows stand beside D_in under an arrow: their baseline is the chosen answer, the revision the rejected.
        """
        ratios = ((self.near_ratio, "near"), (self.out_ratio, "out"))
        mixed = "".join(rf" \cup {ratio:g}\,\overleftarrow{{D}}_\text{{{name}}}" for ratio, name in ratios if ratio)
        terms = [
            (self.preference, rf"L_\text{{DPO}}(D_\text{{in}}{mixed};\,\beta={self.beta:g})"),
            (self.chosen_sft_weight, rf"L_\text{{SFT}}(D_\text{{in}}{mixed}, y^+)"),
            (self.out_weight, _keep(self.kl, r"D_\text{out}")),
            (self.near_weight, _keep(self.kl, r"D_\text{near}")),
        ]
        return "L = " + " + ".join(f"{weight:g}\\,{term}" if weight != 1 else term for weight, term in terms if weight)


def _keep(kl: float, data: str) -> str:
    """The term that holds the model to its own answers, in LaTeX."""
    sft, divergence = rf"L_\text{{SFT}}({data})", rf"\text{{KL}}(\pi_0\,\|\,\pi;\,{data})"
    return {0: sft, 1: divergence}.get(kl, rf"\big({1 - kl:g}\,{sft} + {kl:g}\,{divergence}\big)")


_DPO = Method(out_weight=0.0, near_weight=0.0)
_SCD = Method(preference=0.0, chosen_sft_weight=1.0, out_weight=0.0, near_weight=0.0)

METHODS: dict[str, Method] = {
    "c3po": Method(),
    "c3po_kl": Method(kl=1.0),
    "c3po_no_near": Method(near_weight=0.0),
    "c3po_no_out": Method(out_weight=0.0),
    "c3po_nll": Method(chosen_sft_weight=1.0),
    "c3po_after_scd_negatives": Method(start="scd_negatives"),
    "dpo": _DPO,
    "dpo_negatives": replace(_DPO, near_ratio=0.5, out_ratio=0.5),
    "dpo_after_scd": replace(_DPO, start="scd"),
    "scd": _SCD,
    "scd_mixed": replace(_SCD, near_ratio=0.5, out_ratio=0.5),
    "scd_negatives": replace(_SCD, near_weight=0.5, out_weight=0.5),
}


LABEL = re.compile(r"[\w.=,+-]{1,80}")  # of a variant: it is part of a folder's name


def registered(name: str) -> str:
    """The registry's part of a method's name: `c3po@beta=0.01` is a variant of `c3po` with settings of its own."""
    return name.partition("@")[0]


def _check_label(name: str) -> None:
    _, at, label = name.partition("@")
    if at and not LABEL.fullmatch(label):
        raise ValueError(f"method {name!r}: expected a label of letters, digits and . = , + - _, found {label!r}")


def get_method(name: str, **settings: Any) -> Method:
    """A registered method, or a variant `method@label` of one, with some of its settings replaced.

    Raises:
        KeyError: unknown method or setting, with the nearest valid name.
        ValueError: a setting of the wrong type, or out of its range.
    """
    _check_label(name)
    known = registered(name)
    if known not in METHODS:
        raise KeyError(f"unknown method {name!r} ({nearest(known, METHODS)})")
    valid = [field.name for field in fields(Method)]
    for key in settings:
        if key not in valid:
            raise KeyError(f"method {name!r}: unknown setting {key!r} ({nearest(key, valid)})")
    try:
        return replace(METHODS[known], **settings)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from None


BASE_RESAMPLED = "base_resampled"  # pi_0 answering once more: the noise floor of every score
PROMPTED = (BASE_RESAMPLED, "in_context", "in_context_cot", "revised")


def trained_methods(methods: Sequence[str]) -> list[str]:
    """Those among the methods that need an adapter.

    Raises:
        KeyError: a method that is neither prompted nor registered.
        ValueError: a variant's label that cannot be part of a folder's name.
    """
    for method in methods:
        _check_label(method)
    unknown = [method for method in methods if method not in PROMPTED and registered(method) not in METHODS]
    if unknown:
        raise KeyError(f"unknown method {unknown[0]!r} ({nearest(registered(unknown[0]), [*PROMPTED, *METHODS])})")
    return [method for method in methods if registered(method) in METHODS]
