"""Sampling: from one sentence to rows.

In: a feedback's record and the settings of its sample. Out: rows of prompts with pi_0's answers, revised answers and
in-context answers, and reading them back.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "answers",
        "deduplicated",
        "export",
        "generate_feedback",
        "generate_prompts",
        "reference",
        "rows",
        "sample",
        "settings",
        "unlabelled",
    ],
    submod_attrs={
        "sample": ["Sample", "open_sample"],
        "settings": ["SampleSettings"],
        "rows": ["load_rows", "members", "rows_hash", "stored_feedback", "stored_settings"],
    },
)
