"""Training: from rows to an adapter.

In: sampled rows and a method, which is a setting of one objective (eq. 5, in loss.py). Out: a LoRA adapter that proves
on loading to be the one that was trained, the sum of several, and a gate that says at which prompts one is added.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "adapters",
        "bandit",
        "checks",
        "data",
        "export",
        "finetune",
        "gate",
        "gguf_file",
        "limits",
        "loss",
        "methods",
        "model_card",
        "objective",
        "probe",
        "reference",
        "references",
        "served",
        "stage",
        "trainer",
        "transfer",
    ],
    submod_attrs={
        "methods": ["BASE_RESAMPLED", "registered", "trained_methods"],
        "stage": ["TrainSettings", "adapter_folder", "adapter_hash"],
        "finetune": ["Training"],
        "adapters": ["merged"],
    },
)
