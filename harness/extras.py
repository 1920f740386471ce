"""Packages that only some commands need: put into the environment on their first use. Standard library only."""
import importlib
import importlib.metadata
import importlib.util
import sys
from pathlib import Path
from typing import NamedTuple

from .cache import SetupError, cache_root, locked, say
from .pip import pip


class Extra(NamedTuple):
    """What it is for, pinned packages, the modules whose presence says that they are there, and their size in MB."""
    purpose: str
    packages: tuple
    modules: tuple
    megabytes: int


BENCH = Extra("the benches", ("matplotlib==3.11.2", "tabulate==0.10.0"), ("matplotlib", "tabulate"), 30)
RAY = Extra("Ray", ("ray[data]==2.60.0",), ("ray", "pyarrow"), 300)


def ensure(extra: Extra) -> None:
    """Install what is missing, or pinned to another version in our own environment. Raises SetupError."""
    python, wanted = Path(sys.executable), " ".join(extra.packages)
    own = python.is_relative_to(cache_root())
    if all(map(importlib.util.find_spec, extra.modules)) and (not own or all(map(is_pinned, extra.packages))):
        return
    if not own:
        quoted = " ".join(f"'{package}'" for package in extra.packages)
        raise SetupError(f"{extra.purpose.capitalize()} needs {wanted}. Install with: {python} -m pip install {quoted}")
    with locked(cache_root() / f"{extra.modules[0]}.lock", f"packages of {extra.purpose}"):
        say(f"installing {wanted}, about {extra.megabytes} MB, only this once")
        pip(python, "install", *extra.packages, log=cache_root() / f"{extra.modules[0]}.log")
    importlib.invalidate_caches()


def is_pinned(package: str) -> bool:
    """Whether NAME[EXTRA]==VERSION is what is installed."""
    name, _, version = package.partition("==")
    return importlib.metadata.version(name.partition("[")[0]) == version
