"""Chat: who answers.

In: conversations (`Request`) and how tokens are drawn (`Sampling`). Out: a typed outcome for each, from a local model
or a server, kept in a ledger so that nothing is asked, or paid for, twice.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "budget",
        "decoding",
        "exchange",
        "greedy",
        "keys",
        "ledger",
        "ledger_file",
        "local",
        "names",
        "open",
        "prompts",
        "schemas",
        "structured_output",
        "types",
        "vllm",
    ],
    submod_attrs={
        "types": ["ChatModel", "Outcome", "Sampling", "ask", "request"],
        "open": ["DryRun", "open_chat", "remembered"],
    },
)
