"""Distilled edits: the network, its file, its training, and what it is trained on."""
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from mirror_ops.distillation import network, pairs, training
from mirror_ops.distillation.losses import adversarial_loss, gradient_loss, pixel_loss, target
from mirror_ops.distillation.network import Shape
from mirror_ops.distillation.pairs import Pair, Rule, figures_of, read_pairs, write_pair
from mirror_ops.distillation.tiles import in_tiles
from mirror_ops.distillation.training import Plan, State, begun, seconds_left, train

ROOT = Path(__file__).parents[3]
SMALL = Shape(8, (1, 1), 1, (1, 1))


def pair(seed: int, side: int = 32) -> Pair:
    """A noisy picture with a green square, which is turned red."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(90, 160, (3, side, side), generator=generator, dtype=torch.uint8)
    top, left = (int(torch.randint(side // 2, (), generator=generator)) for _ in range(2))
    square = (slice(None), slice(top, top + side // 2), slice(left, left + side // 2))
    before[square] = torch.tensor([30, 220, 30], dtype=torch.uint8)[:, None, None]
    after, region = before.clone(), torch.zeros(1, side, side, dtype=torch.uint8)
    region[square] = 255
    after[square] = torch.tensor([220, 30, 30], dtype=torch.uint8)[:, None, None]
    return Pair(before, after, region)


def stirred(seed: int = 0, shape: Shape = SMALL):
    """A network that has left its beginning, as training does."""
    made = network.make(shape)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.learnt(made).values():
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return made.eval()


def test_without_spandrel_all_is_there_but_the_network_itself():
    """ComfyUI calls spandrel a non-essential dependency: without it every other node of the pack has to load."""
    asked = """if True:
        import sys
        sys.modules["spandrel"] = sys.modules["spandrel.architectures"] = None
        from mirror_ops.distillation import network, training
        assert training.Plan().shape == network.Shape()
        try:
            network.make(network.Shape())
        except ImportError:
            print("no network")
    """
    done = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "no network\n", done.stderr


def test_a_new_network_returns_the_picture():
    x = torch.rand(2, 3, 40, 56)
    assert torch.equal(network.make(SMALL)(x), x)


def test_the_file_is_what_spandrel_reads_and_says_how_it_was_made(tmp_path):
    made, path = stirred(), tmp_path / "edit.safetensors"
    network.save(made, path, {"edit": "fox to dog"})
    assert network.about(path) == {"edit": "fox to dog"}
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        wanted = made(x)
        assert (network.load(path)(x) - wanted).abs().max() < 5e-3 * wanted.abs().max(), "half precision"


def test_a_training_from_a_base_begins_where_the_base_is_and_may_change_a_part_only():
    base, x = stirred(), torch.rand(1, 3, 32, 32)
    for part in (False, True):
        plan = Plan(steps=2, batch=2, size=32, shape=network.shape_of(base), base=network.digest(base), part=part)
        state = State(plan, base=base)
        with torch.no_grad():
            assert torch.equal(state.averaged()(x), base(x))
        train(state, [pair(0)])
        changed = {name for name, weight in state.averaged().state_dict().items()
                   if not torch.equal(weight, base.state_dict()[name])}
        assert {name for name in changed if ".sca." in name} == set()
        assert ("downs.0.weight" in changed) is not part and "intro.weight" in changed
    few = sum(weight.numel() for weight in network.learnt(state.network).values())
    assert few < 0.25 * sum(weight.numel() for weight in base.parameters())


def test_the_digest_names_the_weights():
    assert network.digest(stirred(0)) == network.digest(stirred(0)) != network.digest(stirred(1))
    assert network.shape_of(stirred()) == SMALL


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 200])
def test_another_file_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="other.safetensors"):
        network.load(path)


def test_what_is_far_away_changes_nothing():
    """NAFNet's own channel attention would carry any pixel to all others; without it tiles meet."""
    made, x = stirred(), torch.rand(1, 3, 32, 256)
    far = x.clone()
    far[..., 200:] = torch.rand(1, 3, 32, 56)
    with torch.no_grad():
        assert torch.equal(made(x)[..., :100], made(far)[..., :100])
        for name, weight in made.named_parameters():
            if ".sca." in name:
                weight.copy_(torch.randn_like(weight))
        assert not torch.equal(made(x)[..., :100], made(far)[..., :100])


@pytest.mark.parametrize("shape", [SMALL, Shape(4), Shape(4, (2, 1), 2, (1, 2))])
def test_the_reach_is_how_far_a_network_sees_and_no_less(shape):
    """The interval that a pixel depends on, found by gradients of sums, whose terms don't cancel."""
    made, side = stirred(0, shape).double(), 2 * (shape.reach // 16 + 2) * 16
    seen = 0
    for place in range(side // 2, side // 2 + shape.multiple):
        x = torch.rand(1, 3, 16, side, dtype=torch.float64, requires_grad=True)
        made(x)[..., place].square().sum().backward()
        columns = x.grad.abs().amax(dim=(0, 1, 2)).nonzero()
        seen = max(seen, place - int(columns.min()), int(columns.max()) - place)
    assert seen == shape.reach


@pytest.mark.parametrize("size", [(64, 64), (96, 150), (40, 131)])
def test_tiles_that_overlap_by_the_reach_are_the_whole_picture(size):
    made, x, largest = stirred(), torch.rand(2, 3, *size), []

    def run(piece):
        largest.append(max(piece.shape[2:]))
        return made(piece)

    with torch.no_grad():
        whole, tiled = made(x), in_tiles(run, x, SMALL, side=64)
        assert (tiled - whole).abs().max() < 1e-5 * whole.abs().max()
        assert max(largest) <= 64 and len(largest) > (size != (64, 64))
    with pytest.raises(ValueError, match="sees 15 pixels .* no place in tiles of 24"):
        in_tiles(run, x, SMALL, side=24)


def test_stopped_and_taken_up_again_it_goes_on_to_the_same_weights(tmp_path):
    plan = Plan(steps=12, batch=2, size=32, shape=SMALL)
    data = [pair(k) for k in range(5)]
    straight = State(plan)
    train(straight, data)

    def stop(state, losses):
        if state.step == 7:     # after the discriminator has begun
            raise KeyboardInterrupt

    stopped = State(plan)
    with pytest.raises(KeyboardInterrupt):
        train(stopped, data, stop)
    stopped.save(tmp_path / "training.pt")
    again = State.load(tmp_path / "training.pt", plan)
    assert again.step == 7 and again.spent == stopped.spent > 0
    train(again, data)
    for one, other in zip(straight.averaged().parameters(), again.averaged().parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_plans_or_a_damaged_training_is_not_taken_up(tmp_path):
    plan, path = Plan(steps=4, batch=2, size=32, shape=SMALL), tmp_path / "training.pt"
    assert State.load(path, plan) is None
    State(plan).save(path)
    assert State.load(path, dataclasses.replace(plan, rate=1e-4)) is None
    path.write_bytes(path.read_bytes()[:1000])
    assert State.load(path, plan) is None


def test_a_training_of_other_pairs_or_settings_is_kept_beside_and_goes_on_when_they_come_again(tmp_path):
    data, path = [pair(k) for k in range(3)], tmp_path / "edit.pt"
    plan = Plan(steps=4, batch=2, size=32, shape=SMALL, pairs=pairs.digest(data))
    assert begun(path, plan)[1] == ""
    state = State(plan)
    training.one_step(state, data)
    state.save(path)
    assert begun(path, plan)[1] == "An unfinished training goes on at step 1 of 4."
    other = dataclasses.replace(plan, pairs=pairs.digest([*data[:2], pair(9)]))
    fresh, said = begun(path, other)
    assert fresh.step == 0 and f"other settings or pairs: it is kept as edit.{plan.digest}.pt" in said
    fresh.save(path)
    again, said = begun(path, plan)
    assert again.step == 1 and f"kept as edit.{other.digest}.pt" in said and "goes on at step 1" in said
    path.write_bytes(path.read_bytes()[:1000])
    assert "damaged: it is kept as edit.damaged.pt" in begun(path, plan)[1]
    assert {file.name for file in tmp_path.iterdir()} == {f"edit.{other.digest}.pt", "edit.damaged.pt"}


def test_the_time_left_counts_the_steps_with_the_discriminator(monkeypatch):
    clock, costs = [0.0], {False: 1.0, True: 10.0}

    def step(state, pairs):
        clock[0] += costs[bool(state.plan.adversarial) and state.step >= state.plan.steps // 2]

    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(training, "one_step", step)
    plan = Plan(steps=100, size=32, shape=SMALL)
    state = State(plan)
    assert seconds_left(state, []) == 50 * 1 + 50 * 10
    state.step = 80
    assert seconds_left(state, []) == 20 * 10 and state.step == 80
    assert seconds_left(State(dataclasses.replace(plan, adversarial=0.0)), []) == 100


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a system without /dev/full")
def test_a_full_disk_is_told_in_a_sentence_and_what_was_there_stays(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before")
    for write in (State(Plan(steps=4, size=32, shape=SMALL)).save, lambda path: network.save(stirred(), path, {})):
        path.with_name(f".file.{os.getpid()}.part").symlink_to("/dev/full")
        with pytest.raises(OSError, match=f"^{path} could not be written: No space left on device$"):
            write(path)
        assert path.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_region_of_the_whole_picture_leaves_nothing_outside():
    x, everywhere = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
    figures = figures_of(x, 1 - x, everywhere)
    assert figures["outside"] == 99.0 and "region is 100.0%" in Rule().why_not(figures)
    assert Rule(most_region=1.0).why_not(figures) == ""


def test_an_edit_is_learnt_and_the_rest_is_kept():
    torch.manual_seed(0)
    data = [pair(k) for k in range(12)]
    state = State(Plan(steps=150, batch=4, size=32, adversarial=0.0, shape=SMALL))
    train(state, data)
    unseen = pair(99)
    before, after, region = (part[None].float() / 255 for part in (unseen.before, unseen.after, unseen.region))
    with torch.no_grad():
        made = state.averaged()(before)
    error, floor = ((x - after).square() for x in (made, before))
    inside = region.expand_as(error) > 0
    assert error[inside].mean() < 0.1 * floor[inside].mean()
    assert (made - before)[~inside].square().mean() < 0.1 * floor[inside].mean()


def test_outside_its_region_the_teacher_is_not_followed():
    before, after = torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 8)
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4] = 1
    wanted = target(before, after, region)
    assert torch.equal(wanted[..., :4], after[..., :4]) and torch.equal(wanted[..., 4:], before[..., 4:])
    inside, outside = wanted.clone(), wanted.clone()
    inside[..., 0] += 0.1
    outside[..., 7] += 0.1
    assert pixel_loss(inside, wanted, region) > 1.2 * pixel_loss(outside, wanted, region) > 0
    assert gradient_loss(wanted + 0.3, wanted, region) < 1e-6
    assert gradient_loss(inside, wanted, region) > 1.1 * gradient_loss(outside, wanted, region) > 0


def test_patches_of_the_region_count_more_for_the_discriminator():
    def judge(before, after):
        return torch.cat([after.new_ones(1, 1, 2, 1), -after.new_ones(1, 1, 2, 1)], dim=3)

    picture, region = torch.rand(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    assert adversarial_loss(judge, picture, picture, region) == 0
    region[..., :4] = 1
    assert adversarial_loss(judge, picture, picture, region).item() == pytest.approx(-(1.25 - 1) / 2.25)


@pytest.mark.parametrize("figures, problem", [
    ({"region": 0.2, "outside": 40.0}, ""),
    ({"region": 0.0, "outside": 99.0}, "region is 0.0%"),
    ({"region": 0.95, "outside": 40.0}, "region is 95.0%"),
    ({"region": 0.2, "outside": 12.0}, "12.0 dB"),
    ({"region": 0.2, "outside": 40.0, "score": -1.0}, "score is -1"),
    ({"region": 0.2, "outside": 40.0, "score": float("nan")}, "score is nan"),
])
def test_the_rule_says_what_is_wrong(figures, problem):
    said = Rule().why_not(figures)
    assert problem in said if problem else said == ""


def kept(folder, count: int = 8, side: int = 32):
    for k in range(count):
        one = [part[None].float() / 255 for part in dataclasses.astuple(pair(k, side))]
        write_pair(folder, f"{k:03}", *one, figures_of(*one))


def test_pairs_come_back_as_they_were(tmp_path):
    kept(tmp_path)
    back = read_pairs(tmp_path)
    assert len(back) == 8
    for k, one in enumerate(back):
        assert all(map(torch.equal, dataclasses.astuple(one), dataclasses.astuple(pair(k))))


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match="0 kept pairs"):
        read_pairs(tmp_path / "nowhere")
    kept(tmp_path)
    (tmp_path / "after" / "003.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="003.png can't be read"):
        read_pairs(tmp_path)
    Image.new("RGB", (16, 32)).save(tmp_path / "after" / "003.png")
    with pytest.raises(ValueError, match="003 .* unlike sizes"):
        read_pairs(tmp_path)


def test_every_pair_is_drawn_once_a_round():
    plan, data = Plan(batch=4, size=32), [pair(k) for k in range(8)]
    first = [training.drawn(data, plan, step, torch.device("cpu"))[0] for step in (0, 1)]
    seen = {tuple(sorted(picture.flatten().tolist())) for batch in first for picture in batch}
    assert len(seen) == 8


@pytest.mark.parametrize("kind", [pairs.REGION, pairs.FIGURES])
def test_a_half_written_pair_is_no_pair(tmp_path, monkeypatch, kind):
    kept(tmp_path, 8)
    one, write = [part[None].float() / 255 for part in dataclasses.astuple(pair(9))], Path.write_bytes

    def full(path, content):
        if path.parent.name == kind:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="009.* could not be written: No space left on device"):
        write_pair(tmp_path, "009", *one, figures_of(*one))
    monkeypatch.undo()
    assert (tmp_path / pairs.AFTER / "009.png").is_file() and not list(tmp_path.rglob("*.part"))
    assert len(read_pairs(tmp_path)) == 8


def test_a_step_that_broke_off_is_not_kept(tmp_path, monkeypatch):
    plan, path = Plan(steps=4, batch=2, size=32, shape=SMALL), tmp_path / "training.pt"
    data, state = [pair(k) for k in range(3)], State(plan)
    training.one_step(state, data)
    state.save(path)
    before = path.read_bytes()
    descend = training._descend

    def broken(*args, **kwargs):
        descend(*args, **kwargs)
        raise KeyboardInterrupt
    monkeypatch.setattr(training, "_descend", broken)
    with pytest.raises(KeyboardInterrupt):
        train(state, data)
    state.save(path)
    assert path.read_bytes() == before
