"""The methods of the paper, each as what it adds to one objective."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Any

from c3po_utils.data import SEGMENTS


@dataclass(frozen=True)
class Method:
    """Weights of the terms of one objective; the defaults are C3PO (eq. 5).

    preference * L_DPO(D_in) + chosen_sft_weight * L_SFT(y+)
        + out_weight * L_SFT(D_out) + near_weight * L_SFT(D_near)
    """

    preference: float = 1.0
    chosen_sft_weight: float = 0.0
    out_weight: float = 0.2  # lambda_1
    near_weight: float = 0.1  # lambda_2
    beta: float = 0.1

    @property
    def segments(self) -> tuple[str, ...]:
        """The kinds of sequences the objective looks at; a term of weight 0 costs nothing."""
        used = {
            "chosen": self.preference or self.chosen_sft_weight,
            "rejected": self.preference,
            "near": self.near_weight,
            "out": self.out_weight,
        }
        return tuple(name for name in SEGMENTS if used[name])


METHODS: dict[str, Method] = {
    "c3po": Method(),
    "c3po_nll": Method(chosen_sft_weight=1.0),
    "dpo": Method(out_weight=0.0, near_weight=0.0),
    "scd": Method(preference=0.0, chosen_sft_weight=1.0, out_weight=0.0, near_weight=0.0),
    "scd_negatives": Method(preference=0.0, chosen_sft_weight=1.0, out_weight=0.5, near_weight=0.5),
}


def _did_you_mean(name: str, names: Any) -> str:
    near = get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def get_method(name: str, **settings: Any) -> Method:
    """A registered method, with some of its settings replaced.

    Raises:
        KeyError: unknown method or setting, with the nearest valid name.
    """
    if name not in METHODS:
        raise KeyError(f"unknown method {name!r}; expected one of {sorted(METHODS)}" + _did_you_mean(name, METHODS))
    fields = asdict(METHODS[name])
    for unknown in sorted(settings.keys() - fields.keys()):
        raise KeyError(
            f"method {name!r}: unknown setting {unknown!r}; expected one of {sorted(fields)}"
            + _did_you_mean(unknown, fields)
        )
    return replace(METHODS[name], **settings)
