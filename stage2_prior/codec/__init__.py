"""Pictures as a few bytes: the .pq file, and the ways to write codes into it.

What is exported is imported when it is first asked for: ``--help`` must not wait for torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage2_prior.codec.oneshot import compress as compress
    from stage2_prior.codec.oneshot import decompress as decompress
    from stage2_prior.codec.oneshot import placeholder as placeholder

__all__ = ["compress", "decompress", "placeholder"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from stage2_prior.codec import oneshot

        return getattr(oneshot, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
