"""Shared by both stages; imports none of the other packages."""

__version__ = "0.1.0"
