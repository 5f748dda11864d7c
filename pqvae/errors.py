"""The one error that a user sees as a line instead of a traceback."""


class UserError(ValueError):
    """Bad input. One line: the file, key or value; what is wrong; what would be right."""


class ImageError(ValueError):
    """A file that is not a usable image; the message says why, in a few words."""
