"""The accounting of `bench memory`, and what it says of gradients at full size."""

import pytest
import torch
from support import tiny

from mirror_ops.attention.mutual_self_attention import masked_mutual
from mirror_ops.stochastic.energies import likeness

MB = 2**20


@pytest.fixture
def memory(host):
    from bench import memory
    return memory


def test_what_only_autograd_holds_is_counted_and_given_back(memory):
    with torch.enable_grad(), memory.Account() as account:
        x = torch.zeros(MB // 4, requires_grad=True)
        for _ in range(10):
            x = x.sin()  # keeps its input
        held = account.now
        x.sum().backward()
        del x
    assert 11 * MB <= held < 11.1 * MB
    assert 12 * MB <= account.peak < 14 * MB and account.now <= MB + 64


def test_views_count_once_and_checkpointing_saves_memory_in_a_small_network(memory, host):
    with torch.enable_grad(), memory.Account() as account:
        x = torch.ones(MB // 4)
        assert account.now == MB
        y = x.view(2, -1)[0]
        y += 1
        assert account.now == MB
    network = tiny.deep().model.diffusion_model
    peaks = [memory.peak_of(host, network, torch.zeros(1, 4, 32, 32), torch.zeros(1, 77, tiny.WIDTH), on)
             for on in (True, False)]
    assert peaks[0] < 0.7 * peaks[1]


def test_the_views_of_an_energy_are_held_one_at_a_time(memory):
    pictures = torch.rand(1, 3, 64, 64)

    def peak(views):
        energy = likeness(lambda p: p.sin().cos().flatten(1), torch.ones(1, 3 * 64 * 64), views)
        with torch.enable_grad(), memory.Account() as account:
            leaf = pictures.clone().requires_grad_()
            energy(leaf, torch.Generator().manual_seed(0)).sum().backward()
        return account.peak, leaf.grad

    (one, _), (many, slope) = peak(1), peak(20)
    assert many < 1.5 * one
    assert torch.equal(slope, peak(20)[1]) and slope.norm() > 0, "the backward pass must see the same views"


def test_masked_mutual_self_attention_makes_no_attention_map(memory):
    pixels, heads = 1024, 4
    q, k, v = (torch.randn(1, pixels, heads * 8) for _ in range(3))
    area = torch.rand(1, pixels)
    with torch.no_grad(), memory.Account() as account:
        masked_mutual(q, k, v, heads, area, area)
    assert account.peak < heads * pixels * pixels * 4 / 4, "a quarter of one float32 map"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SD1.5, 512 x 512", "SDXL, 1024 x 1024"])
def test_gradients_fit_where_they_should(memory, host, name):
    on, off = memory.measure(host, name)
    assert {"SD1.5, 512 x 512": 1.6, "SDXL, 1024 x 1024": 5.0}[name] < on["weights_gb"]
    assert on["total_gb"] < on["limit_gb"] and on["pass_gb"] < off["pass_gb"] / 3
