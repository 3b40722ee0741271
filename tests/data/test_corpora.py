"""Real translations: found, downloaded, resumed, refused; parsed and split without leaks."""

import gzip
import hashlib
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from attn_course import _d2l
from attn_course.data import corpora, download, multi30k, preprocess, tatoeba

LINES = [f"Sentence {k // 2}, please!\tPhrase {k}\u202f!" for k in range(60)]
TEXT = "\n".join(LINES) + "\n"
SHARED = Path(os.environ.get("ATTN_COURSE_DATA") or Path(__file__).parents[3] / "shared" / "data")


@pytest.fixture(autouse=True)
def home(monkeypatch, tmp_path):
    """A home of our own, and no folder named by the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.delenv("ATTN_COURSE_DATA", raising=False)
    return tmp_path / "home"


@pytest.fixture
def zipped(tmp_path):
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("fra-eng/fra.txt", TEXT)
    return path.read_bytes()


class Server:
    """Serves ``content``; may ignore ranges, or break off after some bytes."""

    def __init__(self, content):
        self.content, self.ranges, self.break_after = content, True, None
        self.asked: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                outer.asked.append(wanted)
                start = int(wanted[6:-1]) if wanted and outer.ranges else 0
                if self.path != "/fra-eng.zip":
                    return self.send_error(404)
                if start >= len(outer.content):
                    return self.send_error(416)
                body = outer.content[start:]
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: outer.break_after])

            def log_message(self, *_args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/fra-eng.zip"


@pytest.fixture
def server(zipped, monkeypatch):
    server = Server(zipped)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    remote = download.Remote(
        server.address, "fra-eng.zip", "sha1:" + hashlib.sha1(zipped).hexdigest()
    )
    monkeypatch.setattr(corpora, "TATOEBA", remote)
    yield server
    server.http.shutdown()
    thread.join()
    server.http.server_close()


def whole(translations):
    return sorted(pair[:2] for part in translations for pair in part)


EXPECTED = sorted(
    (f"sentence {k // 2} , please !", f"phrase {k} !") for k in range(60)
)  # fmt: skip


def test_downloads_into_the_cache_once(server, home):
    assert whole(tatoeba()) == EXPECTED
    assert whole(tatoeba(download=False)) == EXPECTED
    assert server.asked == [None]
    folder = home / ".cache" / "attn_course"
    assert [path.name for path in folder.iterdir()] == ["fra-eng.zip"]


def test_downloads_into_the_folder_that_is_named(server, tmp_path):
    tatoeba(folder=tmp_path / "here")
    assert (tmp_path / "here" / "fra-eng.zip").exists()


@pytest.mark.parametrize("ranges", [True, False])
def test_goes_on_after_a_broken_connection(server, tmp_path, ranges):
    server.break_after = 100
    with pytest.raises(FileNotFoundError, match=r"broke after 100 of .* 100 bytes are there"):
        tatoeba(folder=tmp_path)
    assert not (tmp_path / "fra-eng.zip").exists()
    assert (tmp_path / "fra-eng.zip.part").stat().st_size == 100
    server.break_after, server.ranges = None, ranges
    assert whole(tatoeba(folder=tmp_path)) == EXPECTED
    assert server.asked == [None, "bytes=100-"]
    assert not (tmp_path / "fra-eng.zip.part").exists()


def test_a_whole_part_is_not_loaded_again(server, tmp_path):
    (tmp_path / "fra-eng.zip.part").write_bytes(server.content)
    assert whole(tatoeba(folder=tmp_path)) == EXPECTED


@pytest.mark.parametrize("stale", [b"something else", b"x" * 100_000])
def test_a_wrong_part_is_noticed_and_goes(server, tmp_path, stale):
    (tmp_path / "fra-eng.zip.part").write_bytes(stale)
    with pytest.raises(ValueError, match=r"another file than expected: its sha1 is"):
        tatoeba(folder=tmp_path)
    assert not list(tmp_path.glob("fra-eng*"))
    assert whole(tatoeba(folder=tmp_path)) == EXPECTED


def test_another_file_is_refused(server, tmp_path):
    server.content = server.content[:-1] + b"?"
    with pytest.raises(ValueError, match=rf"{server.address} gave another file"):
        tatoeba(folder=tmp_path)
    assert not list(tmp_path.glob("fra-eng*"))


def test_without_a_network_the_error_says_what_to_do(server, monkeypatch, tmp_path):
    remote = corpora.TATOEBA._replace(address=server.address + "x")
    monkeypatch.setattr(corpora, "TATOEBA", remote)
    with pytest.raises(FileNotFoundError) as error:
        tatoeba(folder=tmp_path)
    for part in ("fra-eng.zip", remote.address, str(tmp_path), "404"):
        assert part in str(error.value)
    with pytest.raises(FileNotFoundError) as error:
        tatoeba(folder=tmp_path, download=False)
    for part in ("fra-eng/fra.txt", remote.address, str(tmp_path / "fra-eng.zip")):
        assert part in str(error.value)


def test_nobody_listens(monkeypatch, tmp_path):
    remote = corpora.TATOEBA._replace(address="http://127.0.0.1:9/fra-eng.zip")
    monkeypatch.setattr(corpora, "TATOEBA", remote)
    with pytest.raises(FileNotFoundError, match="could not be downloaded from http://127"):
        tatoeba(folder=tmp_path)


def put(folder, name, text=TEXT):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", corpora.TATOEBA_FILES)
def test_reads_each_layout(tmp_path, name):
    put(tmp_path, name)
    assert whole(tatoeba(folder=tmp_path, download=False)) == EXPECTED


def test_the_environment_names_a_folder_and_the_argument_goes_first(monkeypatch, tmp_path):
    put(tmp_path / "a", "fra.txt")
    put(tmp_path / "b", "fra.txt", TEXT.replace("Sentence", "Other"))
    monkeypatch.setenv("ATTN_COURSE_DATA", str(tmp_path / "a"))
    assert whole(tatoeba(download=False)) == EXPECTED
    other = whole(tatoeba(folder=tmp_path / "b", download=False))
    assert other[0][0].startswith("other")


def test_windows_line_ends_and_a_third_column_are_read(tmp_path):
    put(tmp_path, "fra.txt", "".join(f"{line}\tCC-BY\r\n" for line in LINES))
    assert whole(tatoeba(folder=tmp_path)) == EXPECTED


def test_truncated_and_changed_files_are_refused(tmp_path, zipped):
    path = put(tmp_path, "fra.txt.gz")
    good = path.read_bytes()
    changed = bytearray(good)
    changed[len(good) // 2] ^= 0xFF
    for bad in (good[:-20], bytes(changed), b"no gzip at all"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"fra\.txt\.gz is damaged"):
            tatoeba(folder=tmp_path)
    path.unlink()
    for bad in (zipped[:-40], b""):
        (tmp_path / "fra-eng.zip").write_bytes(bad)
        with pytest.raises(ValueError, match=r"fra-eng\.zip is damaged"):
            tatoeba(folder=tmp_path)


def test_bad_text_is_named_with_its_line(tmp_path):
    path = put(tmp_path, "fra.txt", "Go.\tVa !\nno tab here\nHi.\tSalut !\n")
    with pytest.raises(ValueError, match=r"fra\.txt, line 2, must hold a tab, got 'no tab here'"):
        tatoeba(folder=tmp_path)
    path.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        tatoeba(folder=tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is damaged"):
        tatoeba(folder=tmp_path)


def test_the_split_is_by_english_sentence(tmp_path):
    put(tmp_path, "fra.txt")
    data = tatoeba(folder=tmp_path, held_out=0.2)
    assert [len(part) for part in data] == [36, 12, 12]  # both translations go together
    sources = [{pair.source for pair in part} for part in data]
    assert sum(map(len, sources)) == len(set().union(*sources)) == 30
    assert tatoeba(folder=tmp_path, held_out=0.2) == data
    assert tatoeba(folder=tmp_path, held_out=0.2, seed=1) != data


def test_size_takes_the_beginning_and_max_len_the_short(tmp_path):
    put(tmp_path, "fra.txt", TEXT + "A much longer sentence here.\tUne phrase plus longue ici.\n")
    assert whole(tatoeba(folder=tmp_path, size=40)) == sorted(
        pair for pair in EXPECTED if int(pair[1].split()[1]) < 40
    )
    assert whole(tatoeba(folder=tmp_path, max_len=5)) == EXPECTED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be an integer of at least 1, got 0"),
        ({"max_len": 2.5}, "max_len must be an integer of at least 1, got 2.5"),
        ({"held_out": 0.5}, "held_out must lie between 0 and 0.5, got 0.5"),
        ({"size": 4}, "2 English sentences are too few for held_out=0.1"),
    ],
)
def test_tatoeba_refuses(tmp_path, options, message):
    put(tmp_path, "fra.txt")
    with pytest.raises(ValueError, match=message):
        tatoeba(folder=tmp_path, **options)


def captions(folder, english, french, part):
    put(folder, f"multi30k/{part}.en.gz", "\n".join(english) + "\n")
    put(folder, f"multi30k/{part}.fr.gz", "\n".join(french) + "\n")


def test_multi30k_is_split_without_leaks(tmp_path):
    captions(tmp_path, [f"Man {k}." for k in range(30)], [f"Homme {k}." for k in range(30)],
             "train")  # fmt: skip
    captions(tmp_path, ["Man 3.", "Dog."], ["Homme trois.", "Chien."], "val")
    data = multi30k(folder=tmp_path, download=False, held_out=5)
    assert [len(part) for part in data] == [24, 5, 2]
    assert whole(data)[0] == ("dog .", "chien .")
    assert "man 3 ." not in {pair.source for pair in data.train + data.validation}
    with pytest.raises(ValueError, match=r"held_out must be an integer in \[1, 28\], got 29"):
        multi30k(folder=tmp_path, held_out=29)
    captions(tmp_path, ["Dog.", "Cat."], ["Chien."], "val")
    with pytest.raises(ValueError, match="equally many lines, got 2 and 1"):
        multi30k(folder=tmp_path, held_out=5)


def test_multi30k_names_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"multi30k/train\.en\.gz.*githubusercontent"):
        multi30k(folder=tmp_path, download=False)


def test_preprocess():
    assert preprocess("Go.") == "go ."
    assert preprocess("Ça va\u202f? Oui\xa0!..") == "ça va ? oui ! . ."


needs_files = pytest.mark.skipif(
    not (SHARED / "fra-eng" / "fra.txt.gz").exists(), reason=f"no real data in {SHARED}"
)


@needs_files
def test_the_real_files():
    data = tatoeba(folder=SHARED, download=False)
    sources = [{pair.source for pair in part} for part in data]
    assert sum(map(len, sources)) == len(set().union(*sources)) > 110_000
    assert sum(map(len, data)) > 160_000
    assert not any(c in pair.target for pair in data.test for c in "\u202f\xa0")
    captions = multi30k(folder=SHARED, download=False)
    assert len(captions.validation) >= 1_000 and 1_000 <= len(captions.test) <= 1_014
    assert sum(map(len, captions)) > 29_900


@needs_files
def test_tokens_are_those_of_d2l():
    try:
        d2l = _d2l.load()
    except ImportError as error:
        pytest.skip(str(error))
    text = gzip.decompress((SHARED / "fra-eng" / "fra.txt.gz").read_bytes()).decode()
    lines = text.split("\n")[:-1]
    lines = lines[:640] + lines[640::40]
    theirs = object.__new__(d2l.MTFraEng)
    sources, targets = theirs._tokenize(theirs._preprocess("\n".join(lines)))
    assert len(lines) == len(sources) > 4_000
    for line, *both in zip(lines, sources, targets, strict=True):
        for text, tokens in zip(line.split("\t"), both, strict=True):
            if "\u2009" in text:  # d2l leaves this space, in 79 lines, inside a token
                tokens = " ".join(tokens).split()
            assert [*preprocess(text).split(), "<eos>"] == tokens
