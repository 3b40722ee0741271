"""Progress shows where someone watches, never on stderr, and leaves constant text."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from attn_course.training import fit, progress

BATCH = (torch.ones(1, 1), torch.zeros(1, 1))


def train(epochs=3):
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    return fit(model, [BATCH], nn.functional.mse_loss, optimizer=frozen, epochs=epochs)


@pytest.mark.parametrize("kernel, tty, expected", [
    (True, True, "notebook"),
    (True, False, "notebook"),
    (False, True, "terminal"),
    (False, False, "silent"),
])  # fmt: skip
def test_surroundings(monkeypatch, kernel, tty, expected):
    shell = SimpleNamespace(kernel=object() if kernel else None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: tty, raising=False)
    assert progress.surroundings() == expected


def test_silent_where_nobody_watches(capfd, monkeypatch):
    monkeypatch.setattr(progress, "surroundings", lambda: "silent")
    train()
    assert capfd.readouterr() == ("", "")


def test_progress_false_is_silent_everywhere(capfd, monkeypatch):
    monkeypatch.setattr(progress, "surroundings", lambda: "terminal")
    fit(nn.Linear(1, 1), [BATCH], nn.functional.mse_loss, epochs=2, progress=False)
    assert capfd.readouterr() == ("", "")


def test_terminal_uses_stdout_and_ends_with_the_result(capsys, monkeypatch):
    monkeypatch.setattr(progress, "surroundings", lambda: "terminal")
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    train()
    out, err = capsys.readouterr()
    assert err == ""
    assert "2.0 of 3 epochs, loss 0.25" in out
    assert out.endswith("\r3 epochs, last mean loss 0.25\n")


class Screen:
    """Stands in for IPython's display: notes everything shown in one place."""

    def __init__(self):
        self.shown = []

    def display(self, bundle, *, raw, display_id):
        assert raw and display_id is True
        self.shown.append(bundle)
        return self

    def update(self, bundle, *, raw):
        assert raw
        self.shown.append(bundle)


@pytest.fixture
def screen(monkeypatch):
    import IPython.display

    screen = Screen()
    monkeypatch.setattr(progress, "surroundings", lambda: "notebook")
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    monkeypatch.setattr(IPython.display, "display", screen.display)
    return screen


def test_notebook_bar_replaces_itself_and_leaves_nothing_but_the_result(capsys, screen):
    train()
    first, *between, last = screen.shown
    assert first == last == {"text/html": "", "text/plain": ""}
    assert len(between) == 3
    assert '<progress value="2" max="3"></progress>' in between[1]["text/html"]
    assert capsys.readouterr() == ("3 epochs, last mean loss 0.25\n", "")


def test_notebook_bar_goes_away_when_training_fails(capsys, screen):
    with pytest.raises(ValueError, match="single number"):
        fit(nn.Linear(1, 1), [(torch.ones(2, 1),) * 2], lambda out, _: out, epochs=1)
    assert screen.shown[-1]["text/html"] == ""
    assert capsys.readouterr() == ("", "")


def test_updates_are_spaced_out(screen, monkeypatch):
    monkeypatch.setattr(progress, "INTERVAL", 3600.0)
    train(epochs=20)
    assert len(screen.shown) <= 3


def test_batches_count_as_fractions_of_an_epoch(screen):
    fit(nn.Linear(1, 1), [BATCH] * 4, nn.functional.mse_loss, epochs=1)
    shown = [bundle["text/html"] for bundle in screen.shown[1:-1]]
    assert [text.split('"')[1] for text in shown] == ["0.25", "0.5", "0.75", "1"]
