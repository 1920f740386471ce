"""Training of the embedded model: run by `python run.py train`.

Importing this package makes the host's classes importable, also in the processes that training spawns.
"""
from .host import boot

boot()
