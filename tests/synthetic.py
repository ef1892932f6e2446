"""Made-up answers with known rates, for the tests of scores and figures."""

from __future__ import annotations

import numpy as np
import pandas as pd

from c3po_utils.evaluation.intervals import Cells
from c3po_utils.feedback import SPLITS

METHODS = (
    "in_context", "in_context_cot", "scd", "scd_negatives", "dpo", "c3po", "c3po_kl", "c3po_nll",
    "c3po_no_near", "revised", "base_resampled", "dpo_negatives",
)  # fmt: skip
RATES = {  # chance that an answer applies the feedback: in scope, near scope, out of scope
    "in_context": (0.85, 0.6, 0.35),
    "in_context_cot": (0.6, 0.3, 0.15),
    "scd": (0.75, 0.45, 0.1),
    "scd_negatives": (0.6, 0.2, 0.04),
    "dpo": (0.65, 0.55, 0.3),
    "c3po": (0.72, 0.15, 0.03),
    "revised": (0.95, 0.05, 0.01),
    "base_resampled": (0.06, 0.05, 0.02),
}
WORDS = [
    "budget", "meeting", "friday", "coffee", "river", "engine", "letter", "garden", "music", "plan", "report",
]  # fmt: skip


def answers(
    feedbacks: int = 2,
    methods: tuple[str, ...] = METHODS[:6],
    prompts: int = 20,
    categories: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """The tidy answers table: `prompts` per split, feedback-level rates Beta-distributed around `RATES`."""
    rng = np.random.default_rng(seed)
    parts = []
    for f in range(feedbacks):
        for s, split in enumerate(SPLITS):
            ids = [f"{split[:3]}-{i:03d}" for i in range(prompts)]
            texts = [f"Prompt {i}: please write about {' '.join(rng.choice(WORDS, 8))}." for i in ids]
            base = rng.random(prompts) < 0.05
            for method in methods:
                rate = RATES.get(method, (0.7, 0.25, 0.06))[s]
                ok = rng.random(prompts) < rng.beta(6 * rate, 6 * (1 - rate))
                parts.append(
                    pd.DataFrame(
                        {
                            "feedback": f"feedback-{f:03d}",
                            "method": method,
                            "split": split,
                            "category": [f"category-{i % categories}" for i in range(prompts)],
                            "prompt_id": ids,
                            "score": ok.astype(float) - base,
                            "passes": ok,
                            "prompt": texts,
                            "answer": [f"{method} says {' '.join(rng.choice(WORDS, 12))}!" for _ in ids],
                            "baseline": "The base model says something plain.",
                        }
                    )
                )
    return pd.concat(parts, ignore_index=True)


def simulated_cells(
    feedbacks: int,
    categories: tuple[int, int, int],
    per_category: int,
    data_sets: int,
    rates: tuple[tuple[float, float], ...] = ((0.67, 4.5), (0.2, 3), (0.03, 8)),
    correlation: float = 0.1,
    seed: int = 0,
) -> tuple[Cells, np.ndarray]:
    """Independent data sets in the place of methods, and each feedback's true rates [F, data_sets, S].

    A feedback's rate is Beta(mean, concentration)-distributed, a category's is Beta-distributed around it
    with the given within-category correlation, and prompts are Bernoulli.
    """
    rng = np.random.default_rng(seed)
    shape = (feedbacks, data_sets, 3, max(categories))
    n, total, truth = np.zeros(shape), np.zeros(shape), np.zeros(shape[:3])
    tightness = (1 - correlation) / correlation
    for s, ((mean, concentration), count) in enumerate(zip(rates, categories, strict=True)):
        rate = rng.beta(mean * concentration, (1 - mean) * concentration, shape[:2])
        around = np.maximum(np.stack([rate, 1 - rate]) * tightness, 1e-3)[..., None]
        n[:, :, s, :count] = per_category
        total[:, :, s, :count] = rng.binomial(per_category, rng.beta(*around, (*shape[:2], count)))
        truth[:, :, s] = rate
    return Cells(pd.RangeIndex(feedbacks), pd.RangeIndex(data_sets), n, total, total.sum(-1)), truth
