"""The methods of the paper, each as what it changes in one objective, and the gates of some."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from c3po_utils.runs import nearest
from c3po_utils.training.limits import Count, CountOrNone, NotNegative, Positive, Share, check_fields

OTHERS = {"start": "starts from", "gated": "is a gate for", "distils": "distils"}  # fields that name another method
SEGMENTS = ("chosen", "rejected", "near_scope", "out_of_scope")
READ = {"gate_layer", "gate_pooling"}
CHOSEN = {"gate_all": READ, "gate_search": READ | {"gate_all", "gate_l2"}}  # what these fields leave nothing to say of


@dataclass(frozen=True)
class Method:
    """Weights of the terms of one objective, and what else tells methods apart; the defaults are C3PO (eq. 5).

    preference * L_DPO(D_in) + chosen_sft_weight * L_SFT(y+) + out_weight * L_keep(D_out) + near_weight * L_keep(D_near)

    where L_keep = (1 - kl) * L_SFT + kl * KL(pi_0 || pi). A term of weight 0 costs nothing.

    A `gated` method trains no adapter: it takes that of another method and fits a gate (gate.py), which decides at
    each prompt whether the adapter is added to pi_0. Its own terms have the weight 0.

    A method that `distils` a gated one learns its policy with one plain adapter, which needs no gate: y+ in scope, and
    pi_0's own answers also at `unlabelled` prompts, those of other feedbacks, where the gate is closed; at `nearby`
    ones, about the feedback's own matters, also the adapter's answers where it is open (transfer.py).

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
    distils: str = ""  # the gated method that answers for the unlabelled and nearby prompts
    unlabelled: CountOrNone = 0  # of these prompts: they join near and out rows in turn; beside nearby ones the latter
    nearby: str = ""  # more prompts about the feedback's matters, all of: bundled, or FILE.jsonl[:COLUMN]
    max_prompts: CountOrNone = 0  # train on at most this many pairs; 0: on all
    only_passing: bool = False  # train only on pairs whose revision passes the feedback's metric
    max_length: Count = 1024  # longer examples, in tokens, are dropped
    max_dropped_share: Share = 0.1  # more unusable rows than this share stop the training before it starts
    gated: str = ""  # the method whose adapter a gate adds to pi_0 where a prompt is in scope
    gate_layer: int = -1  # of pi_0's hidden states, which the gate reads: the last
    gate_pooling: Literal["last", "mean"] = "last"  # the prompt's last token, or the mean over its tokens
    gate_all: bool = False  # a quarter, half, three quarters and the whole of the depth, both poolings, side by side
    gate_l2: Positive = 1e-3  # of the gate's weights
    gate_manners: bool = False  # fitted on each prompt written otherwise, too: misspelt, in capitals, ... (manners.py)
    gate_search: bool = False  # choose readings and L2 by cross-validation over the training fold's categories
    gate_leak: Share = 0.0  # share out of scope that may pass in cross-validation; 0: opens at even odds

    def __post_init__(self) -> None:
        check_fields(self, "method setting")
        if self.gated and (self.segments or self.start):
            raise ValueError(f"method settings: a gate for {self.gated!r} trains nothing else; expected no other terms")
        if bool(self.distils) != bool(self.unlabelled or self.nearby):
            found = f"distils is {self.distils!r}, unlabelled is {self.unlabelled} and nearby is {self.nearby!r}"
            raise ValueError(f"method settings: {found}: expected the first with one of the others, or none of them")
        joined = {"near_weight": self.nearby or self.unlabelled, "out_weight": self.unlabelled}
        for weight in (name for name, prompts in joined.items() if prompts and not getattr(self, name)):
            raise ValueError(f"method settings: unlabelled prompts join rows that weigh nothing, as {weight} is 0")
        chosen = "gate_search" if self.gate_search else "gate_all" if self.gate_all else ""
        if passed := sorted(CHOSEN.get(chosen, set()) & self.differences.keys()):
            names = " and ".join(passed)
            raise ValueError(f"method settings: {chosen} chooses what the gate reads, expected it without {names}")
        if not self.segments and not self.gated:
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
        return {name: getattr(self, name) for name in names} | {"whole_pools": bool(self.distils)}

    @property
    def needs(self) -> dict[str, str]:
        """The other methods without whose adapter or gate it cannot be trained, by what it does with that."""
        return {does: other for name, does in OTHERS.items() if (other := getattr(self, name))}

    @property
    def differences(self) -> dict[str, Any]:
        """The fields that differ from C3PO's defaults."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}

    @property
    def equation(self) -> str:
        """The objective in LaTeX, with the weights in force; terms of weight 0 are left out.

        Mixed-in rows stand beside D_in under an arrow: their baseline is the chosen answer, the revision the rejected.
        D_{g<t} are unlabelled prompts at which the gate is closed, N_{g<t} and N_{g>t} the nearby ones where it is
        closed and open. Of a gated method, the policy.
        """
        if self.gated:
            return _GATED % self.gated.replace("_", r"\_")
        ratios = ((self.near_ratio, "near"), (self.out_ratio, "out"))
        out = r" \cup D_{g<t}" * bool(self.unlabelled)
        near, open = (r" \cup N_{g<t}", r" \cup N_{g>t}") if self.nearby else (out, "")
        mixed = "".join(rf" \cup {ratio:g}\,\overleftarrow{{D}}_\text{{{name}}}" for ratio, name in ratios if ratio)
        terms = [
            (self.preference, rf"L_\text{{DPO}}(D_\text{{in}}{mixed}{open};\,\beta={self.beta:g})"),
            (self.chosen_sft_weight, rf"L_\text{{SFT}}(D_\text{{in}}{mixed}{open}, y^+)"),
            (self.out_weight, _keep(self, rf"D_\text{{out}}{out}")),
            (self.near_weight, _keep(self, rf"D_\text{{near}}{near}")),
        ]
        return "L = " + " + ".join(f"{weight:g}\\,{term}" if weight != 1 else term for weight, term in terms if weight)


_GATED = (
    r"\pi(y\,|\,x) = \begin{cases} \pi_\text{%s}(y\,|\,x) & \text{if } g(x) > t \\"
    r" \pi_0(y\,|\,x) & \text{otherwise} \end{cases} \qquad g(x) = w^\top h_{\pi_0}(x) + b"
)


def _keep(method: Method, data: str) -> str:
    """The term that holds the model to its own answers, in LaTeX."""
    total, power = r"\textstyle\sum_t" * method.kl_summed, "^2" * method.kl_squared
    sft, divergence = rf"L_\text{{SFT}}({data})", rf"{total}\text{{KL}}{power}(\pi_0\,\|\,\pi;\,{data})"
    mix = rf"\big({1 - method.kl:g}\,{sft} + {method.kl:g}\,{divergence}\big)"
    return {0: sft, 1: divergence}.get(method.kl, mix)


_DPO = Method(out_weight=0.0, near_weight=0.0)
_SCD = Method(preference=0.0, chosen_sft_weight=1.0, out_weight=0.0, near_weight=0.0)

# Summed over tokens the divergence weighs the word at which an answer turns as y+ does, however long the answer is.
_SCD_KL = replace(_SCD, near_weight=0.05, out_weight=0.05, kl=1.0, kl_summed=True)


def _gate(method: str) -> Method:
    return Method(preference=0.0, out_weight=0.0, near_weight=0.0, gated=method)


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
    "scd_kl": _SCD_KL,
    "scd_distilled": replace(_SCD_KL, distils="scd_gated", unlabelled=200),
    "c3po_gated": _gate("c3po"),
    "c3po_nll_gated": _gate("c3po_nll"),
    "scd_gated": _gate("scd"),
    "scd_negatives_gated": _gate("scd_negatives"),
}


LONGEST_LABEL = 80  # of a variant: it is part of a folder's name
LABEL = re.compile(rf"[\w.=,+-]{{1,{LONGEST_LABEL}}}")


def registered(name: str) -> str:
    """The registry's part of a method's name: `c3po@beta=0.01` is a variant of `c3po` with settings of its own."""
    return name.partition("@")[0]


def split_names(text: str) -> list[str]:
    """Methods with commas between: `c3po,scd@lr=1e-4,r=16` names two, as a label may have commas, too.

    After a label, `setting=value` goes on with it, unless a method's name is before the `=`, as in `scd@x=1,c3po=1`.
    """
    names: list[str] = []
    for part in filter(None, map(str.strip, text.split(","))):
        setting, equals, _ = part.partition("=")
        begins = not equals or registered(setting.rpartition("/")[2]) in METHODS
        if begins or not names or "@" not in names[-1]:
            names.append(part)
        else:
            names[-1] += f",{part}"
    return names


def _check_label(name: str) -> None:
    _, at, label = name.partition("@")
    if at and not LABEL.fullmatch(label):
        expected = f"expected a label of at most {LONGEST_LABEL} letters, digits and . = , + - _"
        raise ValueError(f"method {name!r}: {expected}; found {label!r}, {len(label)} characters")


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
        made = replace(METHODS[known], **settings)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from None
    _refuse_other_kind(name, made)
    return made


def _refuse_other_kind(name: str, made: Method) -> None:
    """Raise ValueError where a setting names a method that has no adapter, or no gate, or that there is not."""
    for setting in OTHERS:
        kind = "gate" if setting == "distils" else "adapter"
        known = [other for other, method in METHODS.items() if bool(method.gated) == (kind == "gate")]
        if (other := getattr(made, setting)) and registered(other) not in known:
            raise ValueError(f"method {name!r}: {setting}: no {kind} of {other!r} ({nearest(other, known)})")


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
