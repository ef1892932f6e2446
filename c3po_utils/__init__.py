"""C3PO: learning from one sentence of feedback without overgeneralizing (arXiv 2402.10893).

Nine rooms. In the order in which a sentence passes them: `feedback` (what is to be learned), `chat` (who answers),
`sampling` (rows), `training` (an adapter), `evaluation` (scores), `figures`; below them `engine` (fast forward passes)
and `runs` (stage folders), and above all `batch` (a run's jobs). A room's docstring says what comes in and goes out.
"""

import os
import warnings

# Threads that wait for one another yield instead of spinning. Spinning makes torch several times slower as soon as
# anything else runs on the same cores; it must be said before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# oneDNN keeps the code that it makes for a product's shape, by default for 1,024 of them. Batches hardly ever have the
# same number of tokens twice, so that would be 0.1 to 0.2 GiB of code that is not run again; a pass needs some 80.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")

# trl and peft still use names that transformers has deprecated: nothing that a reader of our notebooks could act on.
warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
