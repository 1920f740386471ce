"""run.py and serve: what is wrong is said at once, and what they start is their own."""
import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness import environment
from harness.cache import PACK_NAME, SetupError, is_complete
from harness.server import Server

ROOT = environment.ROOT


def load_run():
    """run.py as a module."""
    spec = importlib.util.spec_from_file_location("run", ROOT / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_python_too_old_or_too_new_is_told_what_to_do(monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    problem = load_run().python_problem
    assert "Python 3.10 or newer" in problem((3, 9)) and "python3.12 run.py demo" in problem((3, 9))
    assert "3.10 to 3.14" in problem((3, 15))
    assert problem((3, 10)) == problem((3, 14)) == ""


def test_a_taken_port_is_named(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        server = Server(port)
        with pytest.raises(SetupError, match=f"Port {port} is taken"):
            server.start()
        assert not server.base.exists()
        command = [sys.executable, str(ROOT / "run.py"), "serve", "--no-browser", "--port", str(port)]
        variables = {"MIRROR_INSIDE": "yes", "MIRROR_CACHE": str(tmp_path)}
        variables["COMFYUI_PATH"] = str(environment.available_host())
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})
    assert done.returncode == 1
    assert f"Port {port} is taken" in done.stderr and "--port" in done.stderr and "Traceback" not in done.stderr


def test_without_a_command_run_prints_what_it_can_do():
    done = subprocess.run([sys.executable, str(ROOT / "run.py")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert all(name in done.stdout for name in ("demo", "test", "serve", "bench", "train"))


def run(*arguments, start: str = sys.executable, **variables) -> subprocess.CompletedProcess:
    """run.py as from a shell; a variable of None is not set."""
    names = {**os.environ, **variables}
    return subprocess.run([start, str(ROOT / "run.py"), *arguments], capture_output=True, text=True, timeout=120,
                          env={name: value for name, value in names.items() if value is not None})


def test_a_command_that_there_is_not_is_named_with_the_nearest():
    done = run("bnch")
    assert done.returncode == 2 and done.stdout == ""
    assert "no command 'bnch'. Did you mean bench? The commands are: test, lint, serve" in done.stderr


@pytest.mark.parametrize("port", ["99999999", "0", "-1", "http"])
def test_a_number_that_is_no_port_is_named(port, capsys):
    with pytest.raises(SystemExit):
        load_run().serve(["--no-browser", "--port=" + port])
    assert f"{port} is no port; give a number from 1 to 65535" in capsys.readouterr().err


def test_the_help_of_graphs_names_the_sheets_and_so_does_an_unknown_one(capsys):
    from demo import graphs
    for arguments, code in (["--help"], 0), (["nothing"], 2):
        with pytest.raises(SystemExit) as ended:
            graphs.main(arguments)
        said = capsys.readouterr()
        assert ended.value.code == code and "mirror_stock_ksampler" in said.out + said.err


@pytest.mark.parametrize("cache", ["file", "read-only"])
def test_a_cache_folder_that_cannot_be_written_is_named(tmp_path, cache):
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / "file") if cache == "file" else "/proc/cache"      # where nobody can make a folder
    done = run("lint", MIRROR_CACHE=folder, COMFYUI_PATH=None, MIRROR_INSIDE=None)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert folder in done.stderr and "MIRROR_CACHE can name a folder elsewhere" in done.stderr


def test_the_folder_of_a_server_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="MIRROR_CACHE can name a folder elsewhere"):
        Server(base=tmp_path / "file").start()


def test_pythonpath_does_not_reach_into_the_environment(tmp_path):
    outside = Path(sys._base_executable)
    if outside == Path(sys.executable) or not is_complete(Path(sys.executable).parent.parent.parent):
        pytest.skip("these tests run in a Python of the user's own")
    (tmp_path / "ruff.py").write_text("raise SystemExit('a module of PYTHONPATH')")
    done = run("lint", "--version", start=str(outside), PYTHONPATH=str(tmp_path), COMFYUI_PATH=None, MIRROR_INSIDE=None)
    assert done.returncode != 1 and "a module of PYTHONPATH" not in done.stdout + done.stderr


@pytest.mark.parametrize("command, threads", [("serve", "1"), ("demo", "1"), ("test", "1"), ("train", None)])
def test_small_operations_run_on_one_thread_unless_told_otherwise(monkeypatch, command, threads):
    started, seen = load_run(), []
    monkeypatch.setattr(started.signal, "signal", lambda *_: None)
    started.COMMANDS[command] = lambda argv: seen.append(os.environ.get("OMP_NUM_THREADS"))
    for told in (None, "3"):
        monkeypatch.setenv("MIRROR_INSIDE", "yes")
        monkeypatch.delenv("OMP_NUM_THREADS") if told is None else monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert started.main([command]) == 0
    assert seen == [threads, "3"]


def test_clones_that_serve_at_once_have_links_of_their_own(tmp_path):
    packs = [tmp_path / "one", tmp_path / "two"]
    servers = [Server(port, tmp_path / "base", pack=pack) for port, pack in zip((8188, 8189), packs, strict=True)]
    for server, pack in zip(servers, packs, strict=True):
        pack.mkdir()
        server.make_folders()
    assert [server.link.resolve() for server in servers] == packs
    assert servers[0].link.name == PACK_NAME and list((tmp_path / "base" / "custom_nodes").iterdir()) == []


def test_a_server_says_at_once_that_it_starts(tmp_path, capsys, monkeypatch):
    server = Server(base=tmp_path)
    monkeypatch.setattr(server, "command", lambda: [sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(SetupError, match="stopped while starting, exit code 3"):
        server.start()
    assert f"starting ComfyUI on {server.url}" in capsys.readouterr().out
