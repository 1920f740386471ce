"""Hundreds of edits in a row with flat memory, and the same edit under every kind of cache that the host has."""

import gc

import pytest
import torch
from support.tiny import Scene

from harness.graph import node

pytestmark = pytest.mark.faults
EDITS, WARM, ROOM = 500, 100, 24  # ROOM: megabytes that the process may grow by after WARM edits


def editing(seed: int) -> tuple[Scene, str]:
    """(a graph that edits a picture in three ways, the id of the last): new for every seed, its model the same."""
    scene = Scene(steps=2, scheduler="simple")
    target = scene.text("a photo of a dog")
    scene.add("MirrorEdit", model=scene.model, source=scene.source, target=target, latent=scene.latent, seed=seed,
              settings="balanced", strength=1.0, region="auto", negative=scene.empty, **scene.grid)
    mirror = scene.add("MirrorFromSeed", model=scene.model, positive=scene.source, latent=scene.latent, seed=seed,
                       cfg=1.0, **scene.grid)
    edit = scene.sample(lambda slot: mirror(1), positive=target)
    return scene, edit.id


def megabytes() -> float:
    import psutil
    return psutil.Process().memory_info().rss / 2**20


def tensors() -> int:
    gc.collect()
    return sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects())


def test_memory_is_flat_over_hundreds_of_queued_edits(host, figures):
    """As a server does it: one executor, its cache kept from one graph to the next."""
    graph, _ = editing(0)
    before = (0.0, 0)
    for seed in range(EDITS):
        for entry in graph.values():
            if "seed" in entry["inputs"]:
                entry["inputs"]["seed"] = seed
        host.run_graph(graph, cached=True)
        if seed + 1 == WARM:
            before = megabytes(), tensors()
    grown, more = megabytes() - before[0], tensors() - before[1]
    figures(f"{EDITS} queued edits: {grown:+.1f} MB and {more:+d} tensors after the first {WARM}")
    assert grown < ROOM and more <= 0


def test_every_kind_of_cache_gives_the_same_edit(host, monkeypatch, figures):
    found, kinds = [], list(host.execution.CacheType)
    keep = node(lambda latent: found.append(latent["samples"].clone()) or (latent,), ("LATENT",), {"latent": "LATENT"})
    scene, edit = editing(7)
    scene.add(keep, latent=[edit, 0])
    for kind in kinds:
        limits = {"lru": 3, "ram": 2.0, "ram_inactive": 8.0}
        monkeypatch.setattr(host, "shared", host.execution.PromptExecutor(host.listener, kind, limits))
        for seed in (7, 8, 7):  # there, away and back: what is kept of the first must be right for the third
            for entry in scene.values():
                if "seed" in entry["inputs"]:
                    entry["inputs"]["seed"] = seed
            before = len(found)
            host.run_graph(scene, cached=True)
            if len(found) == before:  # all of it came from the cache
                found.append(found[before - 2])
    there, away, back = found[0::3], found[1::3], found[2::3]
    assert len(back) == len(kinds) >= 3
    assert all(torch.equal(one, there[0]) for one in (*there, *back)) and all(torch.equal(one, away[0]) for one in away)
    assert not torch.equal(there[0], away[0])
    figures(f"kinds of cache: {', '.join(kind.name for kind in kinds)}: the same edit bit for bit")
