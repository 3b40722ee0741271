"""Files that do not come with the package: where they are, and how to get them."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

from attn_course.training.progress import surroundings

#: The environment variable that names a folder of data.
VARIABLE = "ATTN_COURSE_DATA"


class Remote(NamedTuple):
    """A file on the network.

    Attributes:
        address: Where to get it.
        path: Where to put it, inside the folder of data.
        digest: What its bytes must add up to: ``"sha256:..."`` or ``"sha1:..."``.
    """

    address: str
    path: str
    digest: str


def locate(
    candidates: Sequence[str], remote: Remote, folder: Path | str | None, download: bool
) -> Path:
    """Find a file, or download it.

    Args:
        candidates: Paths inside a folder of data that will do, the best first.
        remote: What to download if there is none of them.
        folder: Where to look, and where to put it; ``None`` to look in the folder that
            ``ATTN_COURSE_DATA`` names and in ``~/.cache/attn_course``, and put it into
            the latter.
        download: Whether the network may be used.

    Returns:
        The file.

    Raises:
        FileNotFoundError: It is not there, and may not or cannot be downloaded.
        ValueError: What was downloaded is not what was expected.
    """
    if folder is not None:
        folders = [Path(folder).expanduser()]
    else:
        folders = [Path.home() / ".cache" / "attn_course"]
        if os.environ.get(VARIABLE):
            folders.insert(0, Path(os.environ[VARIABLE]).expanduser())
    names = (*candidates, remote.path)
    for place in folders:
        for name in names:
            if (place / name).is_file():
                return place / name
    path = folders[-1] / remote.path
    if not download:
        raise FileNotFoundError(
            f"{' or '.join(map(str, folders))} lacks {' and '.join(names)}. With "
            f"download=True it would come from {remote.address}; without a network, get it "
            f"elsewhere, put it at {path} and call again."
        )
    fetch(remote.address, path, remote.digest)
    return path


def fetch(address: str, path: Path, digest: str) -> None:
    """Download a file; go on where an earlier try stopped.

    The bytes gather in a file that ends in ``.part``, which takes its place once it is
    whole and checked.

    Raises:
        FileNotFoundError: It cannot be had; the message names address, file and folder.
        ValueError: It is not what ``digest`` says. It has been deleted.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        _download(address, part)
    except (OSError, HTTPException) as error:
        kept = part.stat().st_size if part.exists() else 0
        raise FileNotFoundError(
            f"{path.name} could not be downloaded from {address} into {path.parent}: {error}. "
            f"{f'{kept:,} bytes are there; call again to go on. ' if kept else ''}"
            f"Without a network, get the file elsewhere and put it into that folder."
        ) from error
    algorithm, expected = digest.split(":")
    with part.open("rb") as file:
        found = hashlib.file_digest(file, algorithm).hexdigest()
    if found != expected:
        part.unlink()
        raise ValueError(
            f"{address} gave another file than expected: its {algorithm} is {found}, not "
            f"{expected}. It has been deleted; call again, and if this stays, the file there "
            "has changed."
        )
    os.replace(part, path)


def _download(address: str, part: Path) -> None:
    from tqdm import tqdm

    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(address, headers={"User-Agent": "attn_course"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left: the check of the sum decides
            return
        raise
    with response:
        if response.status != 206:  # the server sends all of it again
            start = 0
        left = int(response.headers.get("Content-Length", 0))
        hidden = surroundings() == "silent"
        with (
            part.open("ab" if start else "wb") as file,
            tqdm(
                desc=part.stem,
                total=start + left or None,
                initial=start,
                unit="B",
                unit_scale=True,
                file=sys.stdout,
                leave=False,
                disable=hidden,
            ) as bar,
        ):
            received = 0
            while block := response.read(1 << 16):
                file.write(block)
                received += len(block)
                bar.update(len(block))
    if received < left:
        raise ConnectionError(f"the connection broke after {received:,} of {left:,} bytes")
