"""The methods that are measured, each as the graph that a user would build. One file a family.

To add one: a function and a line in its family's METHODS.
"""

from . import mirror, pix2pix_zero, proxedit, shared_noise, stochastic
from .parts import STEPS, Made, Method, Wires

METHODS = {**mirror.METHODS, **shared_noise.METHODS, **pix2pix_zero.METHODS, **proxedit.METHODS, **stochastic.METHODS}

__all__ = ["METHODS", "STEPS", "Made", "Method", "Wires"]
