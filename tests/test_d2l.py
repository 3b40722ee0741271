"""d2l can be had with, without and with a broken torchvision, and changes no figures."""

import importlib.util
import runpy
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from attn_course import _d2l, install_d2l

needs_d2l = pytest.mark.skipif(
    importlib.util.find_spec("d2l") is None,
    reason="d2l is not installed: python -m attn_course.install_d2l",
)


@pytest.fixture
def fresh(monkeypatch):
    """Neither d2l nor torchvision has been imported; afterwards all is as it was."""
    saved = {}
    for name in list(sys.modules):
        if name.split(".")[0] in ("d2l", "torchvision"):
            saved[name] = sys.modules.pop(name)
    yield
    for name in list(sys.modules):
        if name.split(".")[0] in ("d2l", "torchvision"):
            del sys.modules[name]
    sys.modules.update(saved)


def install_torchvision(monkeypatch, tmp_path, source):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(source))
    (package / "transforms.py").write_text("class ToTensor: pass\n")
    (package / "part.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)


def hide(monkeypatch, package):
    """Make the import of a package fail as if it were not installed."""
    monkeypatch.setitem(sys.modules, package, None)


def torchvision_modules():
    return {
        name for name, module in sys.modules.items() if name.startswith("torchvision") and module
    }


@needs_d2l
def test_has_what_the_course_compares_with():
    d2l = _d2l.load()
    weights = d2l.masked_softmax(torch.zeros(1, 1, 4), torch.tensor([2]))
    assert weights.flatten().tolist() == [0.5, 0.5, 0.0, 0.0]
    assert callable(d2l.show_heatmaps)
    assert _d2l.load() is d2l


@needs_d2l
def test_figures_keep_their_format(monkeypatch):
    import matplotlib

    matplotlib.use("agg")
    d2l = _d2l.load()

    def refuse(*_args, **_kwargs):
        raise AssertionError("d2l changed the format of figures")

    monkeypatch.setattr(d2l.backend_inline, "set_matplotlib_formats", refuse)
    d2l.show_heatmaps(torch.eye(3).reshape(1, 1, 3, 3), xlabel="keys", ylabel="queries")
    d2l.set_figsize()
    d2l.plt.close("all")


@needs_d2l
def test_a_missing_torchvision_is_replaced_during_the_import_only(fresh, monkeypatch):
    hide(monkeypatch, "torchvision")
    hide(monkeypatch, "torchvision.transforms")
    d2l = _d2l.load()
    assert torchvision_modules() == set()
    with pytest.raises(AttributeError, match=r"torchvision\.datasets is not available"):
        _ = d2l.torchvision.datasets
    assert isinstance(d2l.masked_softmax(torch.zeros(1, 1, 2), None), torch.Tensor)


@needs_d2l
@pytest.mark.parametrize("error", ["RuntimeError('nms does not exist')", "OSError", "ImportError"])
def test_a_broken_torchvision_is_replaced(fresh, monkeypatch, tmp_path, error):
    install_torchvision(monkeypatch, tmp_path, f"from torchvision import part\nraise {error}")
    d2l = _d2l.load()
    assert torchvision_modules() == set()
    assert isinstance(d2l.torchvision, _d2l._Missing)


@needs_d2l
def test_a_working_torchvision_is_left_alone(fresh, monkeypatch, tmp_path):
    install_torchvision(monkeypatch, tmp_path, "from torchvision import part, transforms")
    d2l = _d2l.load()
    assert d2l.torchvision is sys.modules["torchvision"]
    assert d2l.torchvision.__file__ == str(tmp_path / "torchvision" / "__init__.py")
    assert d2l.transforms.ToTensor is sys.modules["torchvision.transforms"].ToTensor


def test_a_missing_d2l_says_how_to_install_it(fresh, monkeypatch):
    monkeypatch.setattr(_d2l, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"Run: python -m attn_course\.install_d2l"):
        _d2l.load()


@needs_d2l
def test_a_package_that_d2l_needs_is_named_and_nothing_stays_behind(fresh, monkeypatch):
    hide(monkeypatch, "requests")
    hide(monkeypatch, "torchvision.transforms")
    with pytest.raises(ImportError, match="requests") as caught:
        _d2l.load()
    assert "python -m attn_course.install_d2l" in str(caught.value)
    assert torchvision_modules() == set() and "d2l.torch" not in sys.modules


# Installing


@pytest.fixture
def pip(monkeypatch):
    """Record what would be run instead of running it."""
    calls = []
    answer = SimpleNamespace(returncode=0)

    def run(command, **_options):
        calls.append(command)
        return answer

    monkeypatch.setattr(subprocess, "run", run)
    return SimpleNamespace(calls=calls, answer=answer)


def test_installs_the_pinned_version_without_dependencies(monkeypatch, capsys, pip):
    monkeypatch.setattr(install_d2l, "installed_version", lambda: None)
    assert install_d2l.main() == 0
    requirement = f"d2l=={install_d2l.VERSION}"
    assert pip.calls == [[sys.executable, "-m", "pip", "install", "--no-deps", requirement]]
    assert f"Installed d2l {install_d2l.VERSION}" in capsys.readouterr().out


def test_does_nothing_where_that_version_is_installed(monkeypatch, capsys, pip):
    monkeypatch.setattr(install_d2l, "installed_version", lambda: install_d2l.VERSION)
    assert install_d2l.main() == 0
    assert pip.calls == []
    assert "nothing to do" in capsys.readouterr().out


def test_replaces_another_version(monkeypatch, capsys, pip):
    monkeypatch.setattr(install_d2l, "installed_version", lambda: "0.17.6")
    assert install_d2l.main() == 0
    assert len(pip.calls) == 1
    assert f"Replaced d2l 0.17.6 by {install_d2l.VERSION}" in capsys.readouterr().out


def test_passes_a_failure_on(monkeypatch, capsys, pip):
    monkeypatch.setattr(install_d2l, "installed_version", lambda: None)
    pip.answer.returncode = 3
    assert install_d2l.main() == 3
    assert "could not be installed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_runs_as_a_module(monkeypatch, pip):
    monkeypatch.setattr("importlib.metadata.version", lambda name: install_d2l.VERSION)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("attn_course.install_d2l", run_name="__main__")
    assert ended.value.code == 0 and pip.calls == []
