"""Where numerical tests run: the first GPU, else the CPU. Tests take it as the fixture `device`."""

from __future__ import annotations

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
