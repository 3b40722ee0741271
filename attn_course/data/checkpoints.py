"""Small trained models that come with the package, one file each."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

#: Where the files are.
FOLDER = Path(__file__).parent / "pretrained"
#: The largest file that may be added, in bytes.
LIMIT = 1_000_000


def pretrained(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A trained model: how to build it and its parameters.

    Args:
        name: Which one; a wrong name gives the list of all.

    Returns:
        The configuration, and the state for ``load_state_dict``, on the CPU. Half precision,
        in which the numbers are stored, comes back as float32.

    Raises:
        ValueError: There is no such model, or its file is damaged.

    Example:
        >>> pretrained("no_such_model")  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        ValueError: there is no pretrained model 'no_such_model', only ...
    """
    path = FOLDER / f"{name}.safetensors"
    if not _is_name(name) or not path.exists():
        there = sorted(file.stem for file in FOLDER.glob("*.safetensors"))
        only = f"only {', '.join(there)}" if there else f"nor any other in {FOLDER}"
        raise ValueError(f"there is no pretrained model {name!r}, {only}.")
    try:
        with safe_open(path, framework="pt") as file:
            config = json.loads((file.metadata() or {})["config"])
            state = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}. Install the package again.") from error
    return config, {k: t.float() if t.dtype == torch.float16 else t for k, t in state.items()}


def save_pretrained(name: str, config: dict[str, Any], state: dict[str, Tensor]) -> Path:
    """Store a trained model in the package, floating-point numbers in half precision.

    Args:
        name: Lower-case letters, digits and underscores.
        config: How to build the model; plain values, as JSON stores them.
        state: Its ``state_dict()``.

    Returns:
        The file. One of the same name has been replaced, as a whole or not at all.

    Raises:
        TypeError: ``config`` holds what JSON does not store.
        ValueError: ``name`` has other characters, ``state`` is empty, a number does not fit
            into half precision, or the file would pass 1 MB.
    """
    if not _is_name(name):
        raise ValueError(f"name must be lower-case letters, digits and underscores, got {name!r}.")
    if not state:
        raise ValueError("state must hold at least one tensor, got none.")
    try:
        metadata = {"config": json.dumps(config)}
    except TypeError as error:
        raise TypeError(f"config must be something that JSON can say: {error}.") from error
    halved = {}
    for key, tensor in state.items():
        # A copy: parameters that share memory are stored once for each name.
        half = tensor.detach().to("cpu", torch.float16 if tensor.is_floating_point() else None)
        halved[key] = half.clone(memory_format=torch.contiguous_format)
        if half.is_floating_point() and not half.isfinite().all():
            raise ValueError(f"state[{key!r}] must be finite in half precision, below 65,504.")
    stored = save(halved, metadata)
    if len(stored) > LIMIT:
        raise ValueError(f"{name} takes {len(stored):,} bytes, and {LIMIT:,} are allowed.")
    FOLDER.mkdir(exist_ok=True)
    path, aside = FOLDER / f"{name}.safetensors", FOLDER / f"{name}.part"
    try:
        aside.write_bytes(stored)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    return path


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[a-z0-9_]+", name) is not None
