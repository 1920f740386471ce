"""Guidance on predictions: classifier-free, proximal, towards the recording."""
