"""Stage 1: images <-> ordered discrete codes.

``Tokenizer`` is imported when it is first asked for: ``--help`` must not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage1_tokenizer.tokenizer import Tokenizer as Tokenizer

__all__ = ["Tokenizer"]


def __getattr__(name: str) -> Any:
    if name == "Tokenizer":
        from stage1_tokenizer.tokenizer import Tokenizer

        return Tokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
