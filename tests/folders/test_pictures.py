"""Pictures of a folder: which are found, what their results are called, which seed their path stands for."""
import io
import os

import numpy as np
import pytest
from PIL import Image

from folders import JobError
from folders.pictures import check_names, found, loadable, result_name, seed_of

from .graphs import draw


def test_nested_pictures_are_found_in_order_and_nothing_else(tmp_path):
    draw(tmp_path, "b.PNG", "a/c.jpg", "a/deep/d.tif", ".hidden/e.png", ".f.png")
    (tmp_path / "notes.txt").write_text("")
    assert found(tmp_path) == ["a/c.jpg", "a/deep/d.tif", "b.PNG"]


def test_links_to_pictures_are_pictures_and_links_to_folders_are_left_out(tmp_path):
    draw(tmp_path / "elsewhere", "b.png")
    draw(tmp_path / "in", "a.png")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "elsewhere" / "b.png")
    assert found(tmp_path / "in") == ["a.png", "link.png"]


@pytest.mark.parametrize("names", [["a.png", "a.jpg"], ["d/A.png", "d/a.png"]])
def test_names_that_collide_are_refused(names):
    with pytest.raises(JobError, match="would both become"):
        check_names(names, keep_suffix=False)


def test_suffixes_can_be_kept():
    check_names(["a.png", "a.jpg"], keep_suffix=True)
    assert result_name("d/a.jpg") == "d/a.png" and result_name("d/a.jpg", True) == "d/a.jpg.png"
    assert result_name("d.x/a.b.jpg") == "d.x/a.b.png"


def test_seeds_come_from_the_path_alone():
    seeds = {seed_of(f"{i}.png", 0) for i in range(1000)}
    assert len(seeds) == 1000 and max(seeds) < 2**31
    assert seed_of("a.png", 0) == seed_of("a.png", 0) != seed_of("a.png", 1)
    assert seed_of("\u00e9.png", 0) == seed_of("e\u0301.png", 0)     # one name, composed and decomposed


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "PPM", "TGA", "GIF"])
def test_formats_that_the_host_may_not_read_become_png(kind):
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (250, 30, 60)).save(out, kind)
    content, suffix = loadable(out.getvalue(), "." + kind.lower())
    assert suffix == ".png" and Image.open(io.BytesIO(content)).convert("RGB").getpixel((0, 0)) == (250, 30, 60)


def test_pictures_that_are_cut_short_are_refused(tmp_path):
    draw(tmp_path, "a.png", "a.jpg")
    for name in ("a.png", "a.jpg"):
        content = (tmp_path / name).read_bytes()
        assert loadable(content, name[1:]) == (content, name[1:])
        with pytest.raises(OSError):
            loadable(content[:len(content) * 2 // 3], name[1:])


@pytest.mark.parametrize("suffix", [".tiff", ".pgm"])
def test_greys_of_16_bits_keep_their_shades(suffix):
    ramp = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    out = io.BytesIO()
    Image.fromarray(ramp).save(out, {".tiff": "TIFF", ".pgm": "PPM"}[suffix])
    content, _ = loadable(out.getvalue(), suffix)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content)))[..., 0], ramp // 257)


def test_numbers_without_a_white_are_refused():
    out = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(out, "TIFF")
    with pytest.raises(ValueError, match="not those of 8 or 16 bits"):
        loadable(out.getvalue(), ".tiff")


@pytest.mark.skipif(os.name == "nt", reason="file names are text there")
def test_a_file_name_that_is_no_text_is_refused_before_any_work(tmp_path):
    draw(tmp_path, "a.png")
    (tmp_path / "a.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    with pytest.raises(JobError, match="caf.*is not text .UTF-8.*Rename it"):
        found(tmp_path)
