"""Feedback: what is to be learned.

In: YAML and JSON files. Out: records of one sentence of feedback with their prompts and general prompts, each problem
of a file told with its line; and the check whether an answer shows the effect.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "checking",
        "files",
        "foreign",
        "general",
        "metrics",
        "other_hand",
        "patterns",
        "python_data",
        "records",
        "reference",
        "reference_metrics",
        "selection",
        "text",
        "writing",
    ],
    submod_attrs={
        "records": ["SPLITS", "Feedback", "Prompt", "Text", "find_feedback", "load_feedbacks"],
        "text": ["folded"],
        "metrics": ["check"],
    },
)
