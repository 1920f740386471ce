"""The fault suite prints its figures at the end: `python run.py test -m faults`."""

import pytest

FIGURES = pytest.StashKey[list]()


@pytest.fixture(scope="session")
def figures(request):
    """figures(line): one more line for the end of the report."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    lines = config.stash.get(FIGURES, [])
    if lines:
        terminalreporter.section("figures")
    for line in lines:
        terminalreporter.line(line)
