"""Walks over noise levels: the grids, one DDIM move, sampling, and the mirror as a value."""
