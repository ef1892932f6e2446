"""C3PO: learning from one sentence of feedback without overgeneralizing (arXiv 2402.10893)."""

import os
import warnings

# Threads that wait for one another yield instead of spinning. Spinning makes torch several times slower as soon as
# anything else runs on the same cores; it must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# trl and peft still use names that transformers has deprecated: nothing that a reader of our notebooks could act on.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
