"""Progress bars are off in a log file, on for a reader, and put back after a run in somebody's program.

The libraries' own switches do nothing here, where the environment has turned all bars off; what they do for a run is
tested in tests/runs/test_log_file.py.
"""

import pytest

from simpo_trainer.train import bars


class Library:
    """A library with bars, and what turns them."""

    def __init__(self, are_off):
        self.are_off = are_off

    def switches(self):
        return (lambda: self.are_off), (lambda: setattr(self, "are_off", True)), self.on

    def on(self):
        self.are_off = False


@pytest.fixture
def libraries(monkeypatch):
    found = [Library(False), Library(True)]
    monkeypatch.setattr(bars, "_switches", lambda: [library.switches() for library in found])
    return found


@pytest.fixture
def watched(monkeypatch):
    def set_to(is_terminal, is_notebook):
        monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
        monkeypatch.setattr(bars, "is_in_notebook", lambda: is_notebook)

    return set_to


def test_all_bars_are_off_in_a_file_and_as_before_after_an_error(watched, libraries):
    watched(False, False)
    with pytest.raises(RuntimeError), bars.no_bars_in_a_file():
        assert [library.are_off for library in libraries] == [True, True]
        raise RuntimeError
    assert [library.are_off for library in libraries] == [False, True]


def test_a_switch_that_turns_an_earlier_one_too_changes_nothing_for_good(watched, libraries):
    """As transformers' turns the Hub's."""
    watched(False, False)
    hub, other = libraries
    hub.are_off, other.are_off = True, False
    other.on = lambda: [setattr(library, "are_off", False) for library in libraries]
    with bars.no_bars_in_a_file():
        pass
    assert (hub.are_off, other.are_off) == (True, False)


@pytest.mark.parametrize(("is_terminal", "is_notebook"), [(True, False), (False, True)])
def test_bars_stay_where_somebody_sees_them(watched, libraries, is_terminal, is_notebook):
    watched(is_terminal, is_notebook)
    with bars.no_bars_in_a_file():
        assert [library.are_off for library in libraries] == [False, True]


def test_every_switch_is_there():
    for are_off, off, on in bars._switches():
        assert isinstance(are_off(), bool) and callable(off) and callable(on)
