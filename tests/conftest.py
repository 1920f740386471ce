"""One real host for all tests, in this process and on the CPU; and one real server for the tests that ask for it."""
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")       # small operations on several threads are many times slower
HERE = Path(__file__).absolute().parent
sys.path += [str(HERE.parent), str(HERE)]   # last: the pack's `nodes` must not hide the host's; HERE for `support`

import pytest  # noqa: E402

from harness.environment import SetupError  # noqa: E402


@pytest.hookimpl(tryfirst=True)     # before marks choose
def pytest_collection_modifyitems(items):
    """What touches ComfyUI's internals is tested on every ComfyUI."""
    for item in items:
        if item.path.is_relative_to(HERE / "nodes" / "host"):
            item.add_marker("every_host")


@pytest.fixture(scope="session")
def host():
    """The host in process with the pack loaded: harness.boot.Host."""
    from harness.boot import boot
    try:
        return boot()
    except SetupError as error:
        pytest.exit(str(error), returncode=3)


@pytest.fixture(scope="session")
def run_graph(host):
    """run_graph(api_graph) -> harness.results.Run with the raw outputs of every node."""
    return host.run_graph


@pytest.fixture(scope="session")
def ui_to_api(host):
    """ui_to_api(workflow as the editor saves it) -> api_graph."""
    return host.ui_to_api


@pytest.fixture(scope="session")
def server(request):
    """The host as a real server with only this pack: harness.server.Server. Its log is kept if any test failed."""
    from harness.server import Server
    with Server() as running:
        yield running
        running.stop(keep_log=request.session.testsfailed > 0)
