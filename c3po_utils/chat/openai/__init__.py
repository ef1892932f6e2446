"""A chat model behind any OpenAI-compatible API: calls within limits and budget, retried, typed and kept.

In: the name `openai:MODEL[@BASE_URL]` and limits. Out: a `ChatModel` that asks over the network.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "client": ["OpenAIChat", "open_model"],
        "limits": ["LIMITS", "Limits"],
        "served": ["ServedChat"],
    },
)
