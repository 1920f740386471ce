"""Quantiles beyond what torch.quantile takes."""
import pytest
import torch

from mirror_ops.guidance.proximal import batch_quantile_threshold, quantile_threshold
from mirror_ops.measure import quantile as module
from mirror_ops.measure.quantile import quantile
from mirror_ops.regions.finders import quantile_sigmoid_region


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n", [1, 2, 10, 1001])
def test_many_numbers_have_the_quantiles_of_few(monkeypatch, n, dtype):
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(n), dtype=dtype)
    for q in (0, 0.05, 0.5, 0.7, 0.95, 1):
        wanted = torch.quantile(values, q, dim=1)
        assert torch.equal(quantile(values, q), wanted)
        with monkeypatch.context() as patch:
            patch.setattr(module, "LARGEST", 0)
            found = quantile(values, q)
        assert found.dtype == dtype and torch.allclose(found, wanted, rtol=0, atol=1e-6)


def test_more_numbers_than_torch_takes():
    ramp = torch.linspace(0, 1, 2**24 + 4096).reshape(1, 1, -1, 4096)
    assert torch.allclose(quantile_threshold(ramp, 0.25).flatten(), torch.tensor([0.25]))


@pytest.mark.parametrize("take", [
    lambda x: quantile_threshold(x, 0.7), lambda x: batch_quantile_threshold(x, 0.7), quantile_sigmoid_region,
], ids=["of each picture", "of a batch", "of a region"])
def test_none_asks_torch_for_more_than_it_takes(monkeypatch, take):
    x = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(0))
    wanted = take(x)
    monkeypatch.setattr(module, "LARGEST", 0)
    for there in (torch, torch.Tensor):
        monkeypatch.setattr(there, "quantile", lambda *_, **__: pytest.fail("torch was asked"))
    assert torch.allclose(take(x), wanted, rtol=0, atol=1e-5)
