"""Tables of figures."""
from bench.table import show


def test_a_row_that_lacks_a_figure_keeps_its_columns(capsys):
    show([{"row": "one", "hit": 1.0, "seconds": 2.0}, {"row": "two", "seconds": 3.0}])
    head, one, two = capsys.readouterr().out.strip("\n").splitlines()
    assert (one.split(), two.split()) == (["one", "1", "2"], ["two", "-", "3"])
    assert head.index("seconds") + len("seconds") == len(two)
