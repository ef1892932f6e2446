"""Evaluation: from an adapter to scores.

In: a run's rows and adapters. Out: every test prompt's answer with a score by the metric or a calibrated judge, and
from them S_in, S_near, S_general, S_out and S_overall with intervals.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "calibration",
        "comparison",
        "evaluate",
        "implicit_reward",
        "intervals",
        "judge",
        "playground",
        "quality",
        "reference",
        "reward_judge",
        "routing",
        "scores",
        "side_effects",
        "two_feedbacks",
    ],
    submod_attrs={
        "evaluate": ["Evaluation", "collect", "open_evaluation"],
        "judge": ["Judge", "open_judge"],
        "scores": ["SCORES", "interval_note"],
    },
)
