"""Sampling: prior -> codes -> images."""
