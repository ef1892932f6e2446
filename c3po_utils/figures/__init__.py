"""Figures: from scores to tables, plots and answer cards, in one style.

In: tidy tables of scores. Out: Axes, styled tables for notebooks, and files that come out the same byte for byte.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "answer_card",
        "cards",
        "export",
        "gate",
        "outcomes",
        "panel",
        "paper_figures",
        "plain_text",
        "quality_table",
        "reward_map",
        "sweeps",
        "tables",
        "tradeoff",
    ],
    submod_attrs={
        "style": ["save"],
        "plain_text": ["styled"],
        "tables": ["reading_table", "table2"],
        "curves": ["figure_bandit", "training_curves"],
    },
)
