"""Trained models that come with the package: there and back, and nothing half written."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from attn_course.data import checkpoints, pretrained, save_pretrained


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "FOLDER", tmp_path / "models")
    return tmp_path / "models"


def test_there_and_back():
    model = nn.Linear(5, 3)
    state = {**model.state_dict(), "steps": torch.tensor([2**40])}
    config = {"width": 5, "name": "é", "parts": ["a", {"b": None}], "rate": 0.1}
    save_pretrained("tiny", config, state)
    found, loaded = pretrained("tiny")
    assert found == config
    assert loaded["weight"].dtype == torch.float32
    torch.testing.assert_close(loaded["weight"], state["weight"], rtol=2**-11, atol=1e-6)
    assert loaded["steps"].tolist() == [2**40]
    model.load_state_dict({key: loaded[key] for key in ("weight", "bias")})


def test_shared_and_strided_tensors_survive():
    tensor = torch.randn(3, 4)
    save_pretrained("tied", {}, {"a": tensor, "b": tensor, "c": tensor.T, "d": tensor[:, 1:2]})
    _, loaded = pretrained("tied")
    torch.testing.assert_close(loaded["a"], loaded["b"], rtol=0, atol=0)
    torch.testing.assert_close(loaded["c"], loaded["a"].T, rtol=0, atol=0)
    torch.testing.assert_close(loaded["d"], loaded["a"][:, 1:2], rtol=0, atol=0)


def test_the_size_is_limited_and_the_old_file_stays(folder):
    save_pretrained("model", {"version": 1}, {"a": torch.ones(3)})
    with pytest.raises(ValueError, match=r"model takes 1,20.,... bytes, and 1,000,000 are allowed"):
        save_pretrained("model", {"version": 2}, {"a": torch.ones(600_000)})
    assert pretrained("model")[0] == {"version": 1}
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]
    save_pretrained("model", {"version": 3}, {"a": torch.ones(3)})
    assert pretrained("model")[0] == {"version": 3}


def test_a_failed_write_leaves_nothing(monkeypatch, folder):
    def broken(path, _target):
        assert path.stat().st_size > 0
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_pretrained("model", {}, {"a": torch.ones(3)})
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "config", "state", "error", "message"),
    [
        ("../up", {}, {"a": torch.ones(1)}, ValueError, "name must be"),
        ("", {}, {"a": torch.ones(1)}, ValueError, "name must be"),
        ("m", {}, {}, ValueError, "at least one tensor"),
        ("m", {"a": torch.ones(1)}, {"a": torch.ones(1)}, TypeError, "config must be"),
        ("m", {}, {"a": torch.tensor([1e6])}, ValueError, r"state\['a'\] must be finite"),
        ("m", {}, {"a": torch.tensor([float("nan")])}, ValueError, r"state\['a'\]"),
    ],
)
def test_refuses_to_save(name, config, state, error, message):
    with pytest.raises(error, match=message):
        save_pretrained(name, config, state)


def test_an_unknown_name_lists_those_there_are(folder):
    with pytest.raises(ValueError, match="no pretrained model 'x', nor any other"):
        pretrained("x")
    for name in ("beta", "alpha"):
        save_pretrained(name, {}, {"a": torch.ones(1)})
    with pytest.raises(ValueError, match="only alpha, beta"):
        pretrained("x")
    with pytest.raises(ValueError, match=r"no pretrained model '\.\./models/alpha'"):
        pretrained("../models/alpha")


def test_damaged_files_are_named(folder):
    path = save_pretrained("model", {}, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        pretrained("model")
    save_file({"a": torch.ones(1)}, path)  # no configuration
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged.*config"):
        pretrained("model")


def test_shipped_models_load_and_are_small(monkeypatch):
    monkeypatch.undo()
    for path in checkpoints.FOLDER.glob("*.safetensors"):
        config, state = pretrained(path.stem)
        assert path.stat().st_size <= checkpoints.LIMIT
        assert isinstance(config, dict) and state
