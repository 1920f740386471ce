"""FID and KID of sets of pictures against the formulas written out; and `bench pie` on a folder, with all of it."""

import json
import shutil

import numpy as np
import pytest
import scipy.linalg
import torch
import torchvision
from PIL import Image
from support import tiny

INCEPTION = "pt_inception-2015-12-05-6726825d.pth"


@pytest.fixture(autouse=True)
def no_download(monkeypatch):
    """A try to fetch weights fails the test."""
    monkeypatch.setattr(torch.hub, "download_url_to_file", None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with random weights of both networks. Theirs are scaled so that features neither vanish nor explode."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3 as Network
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    torch.save({}, folder / INCEPTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "load_state_dict", lambda network, state: None)
        network = Network("random", ["2048"], feature_extractor_weights_path=str(folder / INCEPTION))
    for weight in network.parameters():
        if weight.dim() == 4:
            torch.nn.init.kaiming_normal_(weight, nonlinearity="relu")
    torch.save(network.state_dict(), folder / INCEPTION)
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(),
               folder / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    yield folder
    shutil.rmtree(folder)                       # they are large


def draw(folder, count, size=(40, 30), seed=0):
    """Random pictures in files, the mean of each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for k in range(count):
        pixels = np.clip(rng.normal(rng.uniform(60, 200), 40, (*size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return sorted(folder.iterdir())


def small_network():
    """Pictures [B, 3, 299, 299] to features [B, 16]."""
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 16, 7, stride=7), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
                               torch.nn.Flatten())


def resized(path):
    """[3, 299, 299] by hand: PIL in floats, a channel at a time."""
    image = np.asarray(Image.open(path))
    channels = [Image.fromarray(image[..., c].astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
                for c in range(3)]
    return torch.tensor(np.clip(np.stack([np.asarray(c) for c in channels]), 0, 255))


def frechet(a, b):
    """FID of NumPy features [N, C], [M, C], by a matrix root."""
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)


def mmd(a, b):
    """1000 times the unbiased squared MMD, a pair at a time."""
    def mean(x, y, skip):
        return np.mean([(x[i] @ y[j] / len(x[i]) + 1) ** 3
                        for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)])

    return 1000 * (mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False))


def test_fid_and_kid_of_pictures_in_files(tmp_path):
    from bench.pie_sets import Sets
    edited, real = draw(tmp_path / "edited", 24), draw(tmp_path / "real", 24, (20, 50), seed=1)
    network = small_network()
    found = Sets(network, real)(edited, "any")
    with torch.no_grad():
        a, b = (network(torch.stack([resized(p) / 128 - 1 for p in paths])).double().numpy()
                for paths in (edited, real))
    assert found["fid"] == pytest.approx(frechet(a, b), rel=1e-4) and found["fid"] > 1e-3
    assert found["kid"] == pytest.approx(mmd(a, b), rel=1e-3) and abs(found["kid"]) > 1e-3


def test_fid_of_fewer_pictures_than_features():
    """Covariances have no inverse then. The trace of the root is the nuclear norm of the centred sets' product."""
    from bench.pie_sets import fid
    rng = np.random.default_rng(2)
    a, b = rng.normal(0, 1, (5, 32)), rng.normal(.3, 2, (9, 32))
    x, y = ((one - one.mean(0)) / np.sqrt(len(one) - 1) for one in (a, b))
    by_hand = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x ** 2).sum() + (y ** 2).sum() \
        - 2 * np.linalg.svd(x @ y.T, compute_uv=False).sum()
    assert fid(torch.tensor(a), torch.tensor(b)) == pytest.approx(by_hand, rel=1e-6)
    assert fid(torch.tensor(a), torch.tensor(a)) == pytest.approx(0, abs=1e-5)


def test_kid_is_the_mean_over_subsets_of_the_larger_set():
    from bench.pie_sets import SEED, SUBSETS, kid
    rng = np.random.default_rng(3)
    a, b = rng.normal(0, 1, (6, 16)), rng.normal(.5, 1, (8, 16))
    before = torch.random.get_rng_state()
    found = kid(torch.tensor(a), torch.tensor(b))
    assert torch.equal(torch.random.get_rng_state(), before) and found == kid(torch.tensor(a), torch.tensor(b))
    generator = torch.Generator().manual_seed(SEED)
    each = []
    for _ in range(SUBSETS):
        chosen = torch.randperm(8, generator=generator)[:6].numpy()
        torch.randperm(6, generator=generator)
        each.append(mmd(a, b[chosen]))
    assert found == pytest.approx(np.mean(each), rel=1e-6) and np.std(each) > 1


def test_the_network_reads_a_file_and_sees_what_pil_resizes(weights, tmp_path, monkeypatch):
    from torch_fidelity import feature_extractor_inceptionv3 as package

    from bench.pie_sets import Sets, inception
    paths = draw(tmp_path / "pictures", 2, (64, 80))
    found = Sets(inception(weights / INCEPTION), []).features(paths, "any")
    whole = package.FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=weights / INCEPTION)
    pictures = torch.stack([resized(path) for path in paths])
    monkeypatch.setattr(package, "vassert", lambda *_: None)        # it takes bytes, but computes in floats
    [by_hand] = whole(pictures)
    assert found.shape == (2, 2048) and found.std() > .01
    assert torch.allclose(found.float(), by_hand, rtol=1e-4, atol=1e-4 * by_hand.std())
    [rounded] = whole(pictures.round())
    assert not torch.allclose(rounded, by_hand, rtol=1e-4, atol=1e-4 * by_hand.std())


def test_a_file_that_is_no_weights_is_refused_and_nothing_in_it_runs(tmp_path):
    from bench.pie_sets import inception

    class Harm:
        def __reduce__(self):
            return (tmp_path / "harm").mkdir, ()

    torch.save({"fc.weight": Harm()}, tmp_path / INCEPTION)
    with pytest.raises(ValueError, match="no file of weights"):
        inception(tmp_path / INCEPTION)
    assert not (tmp_path / "harm").exists()


def test_what_is_missing_for_sets_is_said(tmp_path, monkeypatch):
    from bench import pie_sets
    [one] = draw(tmp_path / "one", 1)
    for weights, reference, count, words in ((None, None, 9, "--reference"), (None, one.parent, 9, "--weights"),
                                             (tmp_path, one.parent, 9, INCEPTION)):
        assert pie_sets.available(weights, reference, count)[0] is None
        assert words in pie_sets.available(weights, reference, count)[1][0]
    (tmp_path / INCEPTION).touch()
    assert "1 in " in pie_sets.available(tmp_path, one.parent, 9)[1][0]
    draw(one.parent, 2)
    assert "1 to edit" in pie_sets.available(tmp_path, one.parent, 1)[1][0]
    monkeypatch.setattr(pie_sets, "installed", lambda *_: False)
    assert "pip install torchmetrics torch-fidelity" in pie_sets.available(tmp_path, one.parent, 9)[1][0]


PROMPTS = ("a [cat] on a car", "a [dog] on a car")


@pytest.fixture
def layout(tmp_path):
    """A folder of two pictures in PIE-Bench's layout, and a file that stands for a checkpoint."""
    folder = tmp_path / "pie"
    draw(folder / "annotation_images" / "0_random", 2, (64, 96))
    annotations = {f"00{k}": {"image_path": f"0_random/{k}.png", "original_prompt": PROMPTS[0],
                              "editing_prompt": PROMPTS[1], "mask": [512 * 100, 512 * 200]} for k in range(2)}
    (folder / "mapping_file.json").write_text(json.dumps(annotations))
    (tmp_path / "model.safetensors").write_bytes(b"any")
    return folder


def test_an_entry_offers_its_picture_mask_and_captions(layout):
    from bench.pie import entries
    [first, _] = entries(layout, None, 64)
    picture, _, mask = first.pictures()
    assert picture.shape == (1, 64, 64, 3) and mask.shape == (1, 1, 64, 64) and .3 < mask.mean() < .5
    assert first.captions == ("a cat on a car", "a dog on a car")


def test_a_folder_is_measured_and_a_second_run_reads_the_book(host, layout, weights, tmp_path, monkeypatch):
    from bench import pie, pie_sets
    from bench.edits_measure import Stage
    models = tiny.unet(), tiny.clip(), tiny.vae()
    monkeypatch.setattr(pie, "load", lambda checkpoint: models)
    monkeypatch.setattr(pie, "boot", lambda cpu: host)
    draw(tmp_path / "real" / "within", 3, seed=5)
    out = tmp_path / "out" / "pie.json"

    def run(*more):
        argv = [layout, "--checkpoint", tmp_path / "model.safetensors", "--methods", "floor", "ddim-cfg1", "--size", 64,
                "--steps", 2, "--cpu", "--json", out, *more]
        assert pie.main([str(word) for word in argv]) == 0
        return json.loads(out.read_text())

    light = run()
    full = run("--weights", weights, "--reference", tmp_path / "real")
    assert len(light["missing"]) == 4 and len(full["missing"]) == 2
    for before, row in zip(light["rows"], full["rows"], strict=True):
        assert all(np.isfinite(row[name]) for name in ("psnr", "lpips", "fid", "kid")) and row["fid"] > 0
        assert before == {name: row[name] for name in before}       # edits weren't run again
    assert [(row["method"], row["pictures"], row["forwards"]) for row in full["rows"]] == \
        [("floor", 2, 0), ("ddim-cfg1", 2, 6)]
    assert full["rows"][0]["fid"] != full["rows"][1]["fid"] and full["rows"][0]["lpips"] != full["rows"][1]["lpips"]
    pictures = list(out.parent.rglob("*.png"))
    assert len(pictures) == 4 and {file.parent.name for file in pictures} == {"floor", "ddim-cfg1"}
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "run", None)
        patch.setattr(pie_sets.Sets, "features", None)
        patch.setattr("bench.pie_metrics.Lpips.__call__", None)
        assert run("--weights", weights, "--reference", tmp_path / "real")["rows"] == full["rows"]
    others = tmp_path / "other weights"
    shutil.copytree(weights, others)
    file = next(others.rglob("squeezenet*"))
    torch.save({name: weight.flip(0) for name, weight in torch.load(file, weights_only=True).items()}, file)
    anew = run("--weights", others, "--reference", tmp_path / "real")["rows"][0]
    assert anew["lpips"] != full["rows"][0]["lpips"] and anew["psnr"] == full["rows"][0]["psnr"]


def test_pictures_of_other_settings_are_never_taken_for_these(host, layout, tmp_path):
    from bench import pie
    argv = [str(layout), "--checkpoint", str(tmp_path / "model.safetensors")]
    book = pie.opened(pie.parse(argv), tmp_path)
    assert pie.opened(pie.parse([*argv, "--steps", "20"]), tmp_path).folder != book.folder
    book.add("floor", {}, pie.entries(layout, 1, 64), [{"seconds": 1.}])
    assert pie.opened(pie.parse(argv), tmp_path).records
    (tmp_path / "model.safetensors").write_bytes(b"another")
    assert not pie.opened(pie.parse(argv), tmp_path).records


@pytest.mark.parametrize("more, words", [(["--reference", "nowhere"], "nowhere"), (["--size", "500"], "multiple of 8")])
def test_wrong_options_are_named_before_work_starts(layout, tmp_path, capsys, more, words):
    from bench import pie
    assert pie.main([str(layout), "--checkpoint", str(tmp_path / "model.safetensors"), *more]) == 2
    assert words in capsys.readouterr().err
