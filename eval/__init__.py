"""Scores of images: features of the standard FID Inception, metrics by torch-fidelity."""
