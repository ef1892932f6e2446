"""Engine: fast forward passes, on a CPU and a GPU.

In: the name of a model, batches of token ids. Out: loaded models and tokenizers, and the parts of a pass that are
faster or smaller than the libraries' own: packing and attention, linear layers, log-probabilities, threads.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "attention",
        "fast_paths",
        "hidden_states",
        "kernels",
        "linear",
        "log_probs",
        "models",
        "names",
        "templates",
        "threads",
    ],
    submod_attrs={
        "attention": ["Packing"],
        "models": ["load_model", "load_tokenizer", "shared_model"],
        "names": ["weights_name"],
        "linear": ["fused"],
    },
)
