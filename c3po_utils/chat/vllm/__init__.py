"""vLLM as the engine for weights of ours: `vllm serve` with pi_0 and adapters, started for a stage or joined.

In: pi_0's name and adapters' folders, or the URL of a server that has them. Out: a `ChatModel` for each. The server is
vLLM's own, in an environment of its own: `make vllm`, or the one that $C3PO_VLLM names.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "command": ["BASE", "FOLDER", "LOCAL", "VLLM", "check_weights", "command", "printed", "program", "read_engine"],
        "engine": ["Engine"],
    },
)
