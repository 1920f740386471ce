"""The reconstruction bench on the embedded model: its figures and JSON, going on where it stopped, and its claims."""

import json

import pytest
import torch

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def bench(host):
    from bench import reconstruction
    return reconstruction


@pytest.mark.slow
def test_it_measures_prints_and_goes_on_where_it_stopped(bench, tmp_path, capsys):
    file = tmp_path / "r.json"
    short = ["--scenes", "2", "--batch", "1", "--steps", "2", "--cfg", "1", "5", "--json", str(file)]
    assert bench.main([*short, "--methods", "ddim", "bdia"]) == 0
    first = json.loads(file.read_text())
    at = {(row["method"], row["cfg"]): row for row in first["rows"]}
    assert set(at) == {("ddim", 1), ("ddim", 5), ("bdia", 1), ("bdia", 5)}
    assert at["bdia", 5]["displacement"] < 1e-4 < at["ddim", 5]["displacement"]
    assert at["ddim", 1]["forwards"] == 4 and at["ddim", 5]["forwards"] == 2 + 4 and at["ddim", 5]["backwards"] == 0
    assert at["bdia", 5]["latent_psnr"] > 100 and at["bdia", 5]["psnr"] == pytest.approx(first["vae_psnr"], abs=1e-3)
    assert {"displacement", "psnr", "latent_psnr", "forwards", "backwards", "seconds"} <= set(at["ddim", 1])
    assert "bdia, cfg 5: worst displacement" in capsys.readouterr().out

    del first["pictures"][-1]  # as if it had been stopped before the last picture of bdia at cfg 5
    file.write_text(json.dumps(first))
    assert bench.main([*short, "--methods", "ddim", "bdia", "paper", "--resume"]) == 0
    said, second = capsys.readouterr().out, json.loads(file.read_text())
    measured = [line.split("  ")[1].split(",")[0] for line in said.splitlines() if ", pictures" in line]
    assert sorted(measured) == ["bdia"] + 4 * ["paper"]
    assert second["pictures"][:7] == first["pictures"][:7]
    paper = next(row for row in second["rows"] if (row["method"], row["cfg"]) == ("paper", 5))
    assert paper["backwards"] > 0 and paper["displacement"] < at["ddim", 5]["displacement"]

    assert bench.main([*short[:2], "--steps", "3", "--cfg", "1", "--methods", "ddim", "--json", str(file),
                       "--resume"]) == 0
    assert "measuring all anew" in capsys.readouterr().out


def test_claims_compare_what_they_say(bench):
    def row(method, displacement, forwards, cfg=5.0):
        return {"method": method, "cfg": cfg, "displacement": displacement, "worst": 2 * displacement,
                "forwards": forwards, "backwards": 0}

    rows = [row("ddim", 1.0, 150), row("paper", 0.09, 400), row("paper full", 0.05, 550), row("ours", 0.04, 240),
            row("edict", 9e-5, 400)]
    claims = {c["claim"]: c for c in bench.claims_of(rows)}
    assert claims["paper to ddim, cfg 5"]["holds"] and claims["paper full to paper, cfg 5"]["holds"]
    assert claims["ours to paper full, cfg 5"]["measured"] == pytest.approx(0.8)
    assert claims["extra passes of ours to those of paper full, cfg 5"]["measured"] == pytest.approx(90 / 400)
    assert not claims["edict, cfg 5: worst displacement"]["holds"]
    assert not any("bdia" in name or "cfg 1" in name for name in claims)


@pytest.mark.slow
@pytest.mark.parametrize("cfg, methods", [
    (1, ["ddim", "refine 5", "edict", "bdia", "edict float64", "bdia float64", "exact", "paper full", "ours"]),
    (5, ["ddim", "paper", "paper full", "ours", "edict", "bdia", "exact"]),
    (7.5, ["ddim", "paper", "paper full", "ours", "edict float64", "bdia float64"]),
])
def test_what_is_claimed_of_the_methods_holds_on_held_out_scenes(bench, tmp_path, cfg, methods):
    file = tmp_path / "r.json"
    bench.main(["--scenes", "2", "--batch", "2", "--cfg", str(cfg), "--methods", *methods, "--json", str(file)])
    claims = json.loads(file.read_text())["claims"]
    assert len(claims) >= 6 and all(c["holds"] for c in claims), claims
    assert torch.is_inference_mode_enabled() is False


def test_changed_sources_are_measured_anew(bench, tmp_path, capsys, monkeypatch):
    file = tmp_path / "r.json"
    short = ["--scenes", "1", "--steps", "2", "--cfg", "1", "--methods", "bdia", "edict float64", "--json", str(file),
             "--resume"]
    bench.main(short)
    bench.main(short)
    assert ", pictures" in capsys.readouterr().out.split("wrote")[0]
    bench.main(short)
    assert ", pictures" not in capsys.readouterr().out, "nothing has changed"
    changed = tmp_path / "changed"
    for name in ("mirror_ops", "nodes", "demo", "bench"):
        (changed / name).mkdir(parents=True)
        (changed / name / "any.py").write_text(name)
    monkeypatch.setattr("bench.fingerprint.ROOT", changed)
    bench.main(short)
    assert "measuring all anew" in capsys.readouterr().out
    bench.main(short)
    assert "measuring all anew" not in capsys.readouterr().out
    (changed / "mirror_ops" / "any.py").write_text("mended")
    bench.main(short)
    assert "measuring all anew" in capsys.readouterr().out
