"""Imported for what it imports: all that notebooks use, so that kernels forked from this process need not.

Nothing is computed here: threads that a computation starts would not live on in a fork. What is imported is no
garbage, and no collector looks it over: not while it is imported, and not in kernels, where it took a second each time.
"""

from __future__ import annotations

import gc
import os
import pkgutil
import threading
from importlib import import_module

from tqdm import tqdm

INTERACTIVE = {"c3po_utils.figures.panel"}  # makes widgets, which complain when this process ends

gc.disable()
for room in ("chat", "engine", "feedback", "sampling", "training", "evaluation", "figures"):
    for module in pkgutil.walk_packages(import_module(f"c3po_utils.{room}").__path__, f"c3po_utils.{room}."):
        if module.name not in INTERACTIVE:
            import_module(module.name)
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # else the debugger that kernels import complains
LIBRARIES = (
    "ipykernel.kernelapp", "ipykernel.debugger", "matplotlib.pyplot", "seaborn", "statsmodels.stats.multitest",
    "statsmodels.stats.power",
)  # fmt: skip
for name in LIBRARIES:
    import_module(name)
tqdm.set_lock(threading.RLock())  # its own is a semaphore that processes share, and that a killed kernel leaves behind
gc.freeze()
gc.enable()
