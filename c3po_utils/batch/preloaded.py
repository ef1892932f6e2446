"""Imported for what it imports: all that notebooks use, so that kernels forked from this process need not.

Nothing is computed here: threads that a computation starts would not live on in a fork.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module

INTERACTIVE = {"c3po_utils.figures.panel"}  # makes widgets, which complain when this process ends

for room in ("chat", "engine", "feedback", "sampling", "training", "evaluation", "figures"):
    for module in pkgutil.walk_packages(import_module(f"c3po_utils.{room}").__path__, f"c3po_utils.{room}."):
        if module.name not in INTERACTIVE:
            import_module(module.name)
for name in ("ipykernel.kernelapp", "matplotlib.pyplot", "seaborn", "statsmodels.api"):
    import_module(name)
