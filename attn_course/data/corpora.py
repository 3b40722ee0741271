"""Real translations, English to French: downloaded, or read from a folder."""

from __future__ import annotations

import gzip
import re
import zipfile
import zlib
from pathlib import Path
from random import Random

from attn_course._validation import check_counts
from attn_course.data.download import Remote, locate
from attn_course.data.pairs import Pair, Translations

TATOEBA = Remote(
    "http://d2l-data.s3-accelerate.amazonaws.com/fra-eng.zip",
    "fra-eng.zip",
    "sha1:94646ad1522d915e7b0f9296181140edcf86a4f5",
)
#: What a folder may hold instead of the zip.
TATOEBA_FILES = ("fra-eng/fra.txt.gz", "fra-eng/fra.txt", "fra.txt.gz", "fra.txt")

_MULTI30K = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
)
MULTI30K = tuple(
    Remote(_MULTI30K + name, f"multi30k/{name}", f"sha256:{digest}")
    for name, digest in (
        ("train.en.gz", "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f"),
        ("train.fr.gz", "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c"),
        ("val.en.gz", "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28"),
        ("val.fr.gz", "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9"),
    )
)


def preprocess(text: str) -> str:
    """Cut a sentence into tokens as d2l does: lower case, a space before each of ``,.!?``.

    Args:
        text: A sentence. Spaces of all kinds count as spaces; d2l leaves thin ones (U+2009,
            in 79 of Tatoeba's lines) inside a token.

    Returns:
        Its tokens, separated by single spaces.

    Reference:
        Zhang et al., Dive into Deep Learning, section 10.5.

    Example:
        >>> preprocess("He's calm, isn't he?")
        "he's calm , isn't he ?"
    """
    return " ".join(re.sub(r"([,.!?])", r" \1", text.lower()).split())


def tatoeba(
    *,
    folder: Path | str | None = None,
    download: bool = True,
    size: int | None = None,
    max_len: int | None = None,
    held_out: float = 0.1,
    seed: int = 0,
) -> Translations:
    """English-French sentence pairs of Tatoeba, the 167,130 that d2l uses.

    Most English sentences are short, and many have several translations. The parts share
    no English sentence: all translations of one are in the same part.

    Args:
        folder: Where ``fra-eng.zip``, or its ``fra-eng/fra.txt``, plain or as ``.gz``, is;
            ``None`` for the folder that the environment variable ``ATTN_COURSE_DATA``
            names, then ``~/.cache/attn_course``.
        download: Get the file (6 MB) if it is not there.
        size: Take only so many pairs from the file's beginning, which are the shortest.
        max_len: Leave out pairs with more tokens than this on either side.
        held_out: Which part of the English sentences goes into the validation part, and as
            many again into the test part.
        seed: Chooses the split and the order.

    Returns:
        The three parts, in random order, tokens as by ``preprocess``.

    Raises:
        FileNotFoundError: There is no file, and it may not or cannot be downloaded.
        ValueError: The file is damaged, or an argument is out of range or leaves a part
            empty.

    Reference:
        tatoeba.org, pairs by manythings.org/anki, licence CC BY 2.0 FR.
    """
    for name, value in (("size", size), ("max_len", max_len)):
        if value is not None:
            check_counts(**{name: value})
    if not 0 < held_out < 0.5:
        raise ValueError(f"held_out must lie between 0 and 0.5, got {held_out}.")
    path = locate(TATOEBA_FILES, TATOEBA, folder, download)
    by_source: dict[str, list[Pair]] = {}
    for number, line in enumerate(_lines(path)[:size], 1):
        cells = line.split("\t")
        if len(cells) < 2:
            raise ValueError(f"{path}, line {number}, must hold a tab, got {line!r}.")
        _collect(by_source, cells[0], cells[1], max_len)
    groups = list(by_source.values())
    count = round(held_out * len(groups))
    if count == 0:
        raise ValueError(f"{len(groups)} English sentences are too few for held_out={held_out}.")
    Random(seed).shuffle(groups)
    return _parts(groups[2 * count :], groups[:count], groups[count : 2 * count], seed)


def multi30k(
    *,
    folder: Path | str | None = None,
    download: bool = True,
    max_len: int | None = None,
    held_out: int = 1_000,
    seed: int = 0,
) -> Translations:
    """30,014 English picture captions with their French translations.

    Args:
        folder: Where ``multi30k/train.en.gz``, ``train.fr.gz``, ``val.en.gz`` and
            ``val.fr.gz`` are; ``None`` as for ``tatoeba``.
        download: Get files (1.2 MB) that are not there.
        max_len: Leave out pairs with more tokens than this on either side.
        held_out: How many English sentences of the training files go into the validation
            part.
        seed: Chooses the split and the order.

    Returns:
        The test part is the files ``val``, the other two come from ``train``. No English
        sentence is in two parts. Tokens are as by ``preprocess``.

    Raises:
        FileNotFoundError: A file is not there, and may not or cannot be downloaded.
        ValueError: A file is damaged, or an argument is out of range.

    Reference:
        Elliott, Frank, Sima'an and Specia (2016), Multi30K; French by Elliott, Frank,
        Barrault, Bougares and Specia (2017). For research and education only.
    """
    if max_len is not None and (not isinstance(max_len, int) or max_len < 1):
        raise ValueError(f"max_len must be an integer of at least 1, got {max_len!r}.")
    paths = [locate((), remote, folder, download) for remote in MULTI30K]
    files = []
    for english, french in (paths[:2], paths[2:]):
        sources, targets = _lines(english), _lines(french)
        if len(sources) != len(targets):
            raise ValueError(
                f"{english} and {french} must have equally many lines, got {len(sources)} and "
                f"{len(targets)}."
            )
        by_source: dict[str, list[Pair]] = {}
        for source, target in zip(sources, targets, strict=True):
            _collect(by_source, source, target, max_len)
        files.append(by_source)
    train, test = files
    groups = [pairs for source, pairs in train.items() if source not in test]
    if not isinstance(held_out, int) or not 1 <= held_out < len(groups):
        raise ValueError(
            f"held_out must be an integer in [1, {len(groups) - 1}], got {held_out!r}."
        )
    Random(seed).shuffle(groups)
    return _parts(groups[held_out:], groups[:held_out], list(test.values()), seed)


def _collect(
    by_source: dict[str, list[Pair]], source: str, target: str, max_len: int | None
) -> None:
    """Add a pair to those of its source sentence, unless it is there or too long."""
    pair = Pair(preprocess(source), preprocess(target))
    if max_len is not None and max(text.count(" ") + 1 for text in pair[:2]) > max_len:
        return
    pairs = by_source.setdefault(pair.source, [])
    if pair not in pairs:
        pairs.append(pair)


def _parts(
    train: list[list[Pair]], validation: list[list[Pair]], test: list[list[Pair]], seed: int
) -> Translations:
    random, parts = Random(seed), []
    for groups in (train, validation, test):
        pairs = [pair for group in groups for pair in group]
        random.shuffle(pairs)
        parts.append(pairs)
    return Translations(*parts)


def _lines(path: Path) -> list[str]:
    """The lines of a text file, plain, in a gzip or in d2l's zip."""
    try:
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                data = archive.read("fra-eng/fra.txt")
        else:
            data = path.read_bytes()
            if path.suffix == ".gz":
                data = gzip.decompress(data)
        # Not splitlines(): a sentence may hold other characters that it cuts at.
        lines = data.decode("utf-8").removesuffix("\n").split("\n")
    except (EOFError, OSError, KeyError, zlib.error, zipfile.BadZipFile, UnicodeError) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Delete it, and get it again or call again."
        ) from error
    if lines == [""]:
        raise ValueError(f"{path} is empty. Delete it, and get it again or call again.")
    return [line.removesuffix("\r") for line in lines]
