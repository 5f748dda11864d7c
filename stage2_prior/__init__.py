"""Stage 2: ordered codes <-> probabilities.

``Prior`` is imported when it is first asked for: ``--help`` must not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage2_prior.prior import Prior as Prior

__all__ = ["Prior"]


def __getattr__(name: str) -> Any:
    if name == "Prior":
        from stage2_prior.prior import Prior

        return Prior
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
