"""The error that a user sees as a line instead of a traceback; and how to know a lack of memory."""

import errno
import re

# What torch says of a CPU or GPU; a lack that Python or numpy meets is a MemoryError.
_OF_TORCH = re.compile(
    "out of memory|not enough memory|can't allocate memory|std::bad_alloc|ALLOC_FAILED", re.I
)


class UserError(ValueError):
    """Bad input. One line: the file, key or value; what is wrong; what would be right."""


class ImageError(ValueError):
    """A file that is not a usable image; the message says why, in a few words."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the machine or of a GPU does not suffice."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    of_torch = isinstance(error, RuntimeError) and _OF_TORCH.search(str(error)) is not None
    return of_torch or isinstance(error, MemoryError)
