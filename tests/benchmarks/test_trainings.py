"""Stored trainings: found or refused by name, never half-written, judged as they say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sacrebleu
import torch

from attn_course.benchmarks import trainings
from attn_course.benchmarks.trainings import (
    PRETRAINED,
    RUNS,
    command,
    common,
    exact_match,
    find_training,
    main,
    seq2seq,
    store,
    stored,
    train,
    vocabularies,
)
from attn_course.data import (
    LENGTH_BINS,
    SIGNPOST,
    SLICES,
    Pair,
    Vocabulary,
    pretrained,
    translation_batches,
)
from attn_course.seq2seq import build_translator

RECORDS: list[dict[str, Any]] = [{"seed": 0, "seconds": 10.0}, {"seed": 1, "seconds": 21.0}]


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    path = store("attention", RECORDS, folder)
    assert path.name == "attention.json" and list(folder.iterdir()) == [path]
    found = find_training("attention", folder)
    assert found["runs"] == RECORDS and found["name"] == "attention"
    assert found["note"].startswith("stored run: 2 seeds, 16 s each, " + found["device"]["name"])
    assert found["note"].endswith(f"torch {found['versions']['torch']}, {found['date'][:10]}")
    store("attention", RECORDS[:1], folder)
    assert find_training("attention", folder)["note"].startswith("stored run: 1 seed, 10 s each")


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    store("attention", RECORDS, tmp_path)
    with pytest.raises(
        ValueError,
        match=r"luong has not been run: python -m attn_.* luong\. Stored are: attention",
    ):
        find_training("luong", tmp_path)
    with pytest.raises(ValueError, match=r"Stored are: none\."):
        find_training("attention", tmp_path / "elsewhere")


@pytest.mark.parametrize("step", ["dump", "replace"])
def test_a_crash_leaves_the_old_file(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    path = store("attention", RECORDS, tmp_path)
    before = path.read_text(encoding="utf-8")
    if step == "replace":
        monkeypatch.setattr(stored.os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store("attention", [], tmp_path)
    else:
        with pytest.raises(ValueError, match="not JSON compliant"):
            store("attention", [*RECORDS, {"seconds": float("nan")}], tmp_path)
    assert path.read_text(encoding="utf-8") == before
    assert list(tmp_path.iterdir()) == [path]


def test_stored_files_are_whole() -> None:
    for path in trainings.STORED.glob("*"):
        assert path.stem in RUNS and path.suffix == ".json"
        assert find_training(path.stem)["runs"]
        assert path.read_text(encoding="utf-8").endswith("}\n")


def fake(answers: dict[str, str]) -> Any:
    """A translator that knows some sentences, and says nothing to the others."""

    def translate(sentences: list[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=answers.get(sentence, "")) for sentence in sentences]

    return SimpleNamespace(translate=translate)


def test_exact_match() -> None:
    """Two sentences a length, at both ends of the bin; one of them is translated."""
    pairs, slices = [], frozenset(SLICES)
    for low, high in LENGTH_BINS:
        pairs.append(Pair(" ".join(["a"] * low), "un", slices))
        pairs.append(Pair(" ".join(["b"] * high), "deux"))
    pairs.append(Pair(" ".join(["c"] * LENGTH_BINS[0][0]), "trois", frozenset([SLICES[0]])))
    known = {pair.source: pair.target for pair in pairs if pair.target == "un"}
    right = exact_match(fake(known), pairs)
    bins = len(LENGTH_BINS)
    assert right["all"] == round(bins / (2 * bins + 1), 4)
    assert right["by_length"] == [round(1 / 3, 4)] + [0.5] * (bins - 1)
    assert right["by_slice"] == {SLICES[0]: round(bins / (bins + 1), 4)} | dict.fromkeys(
        SLICES[1:], 1.0
    )
    longer = {source: target + " ." for source, target in known.items()}
    assert exact_match(fake(longer), pairs)["all"] == 0.0


def test_exact_match_needs_each_length_and_slice() -> None:
    with pytest.raises(ValueError, match="each length and slice"):
        exact_match(fake({}), [SIGNPOST])


@pytest.fixture(scope="module")
def words() -> tuple[Vocabulary, Vocabulary]:
    """As many as the grammar's, so that the counts of parameters are those that are trained."""
    return tuple(Vocabulary([[f"w{i}" for i in range(n)]]) for n in (225, 280))  # type: ignore[return-value]


@pytest.mark.parametrize("name", seq2seq.GRAMMAR)
def test_the_models_have_about_equally_many_parameters(
    name: str, words: tuple[Vocabulary, Vocabulary]
) -> None:
    def parameters(name: str) -> int:
        assert set(seq2seq.GRAMMAR[name]) <= {"encoder", "decoder"}
        model = seq2seq.make(name, *words).model
        return sum(parameter.numel() for parameter in model.parameters())

    assert parameters(name) == pytest.approx(parameters("attention"), rel=0.03)


def test_words_are_in_alphabetical_order() -> None:
    pairs = [Pair("the cat", "le chat"), Pair("the black cat", "le chat noir")]
    source, target = vocabularies(pairs)
    assert source.tokens[4:] == ["black", "cat", "the"]
    assert target.tokens[4:] == ["chat", "le", "noir"]
    assert vocabularies(pairs, min_freq=2)[0].tokens[4:] == ["cat", "the"]


def test_training_teaches() -> None:
    """Two sentences, learnt by heart, and at the end of the schedule the steps are tiny."""
    pairs = [Pair("the cat", "le chat"), Pair("the black cat", "le chat noir")]
    source, target = vocabularies(pairs)
    config = {"embed_dim": 32, "hidden_dim": 32}
    translator = build_translator(config, config, source, target)
    batches = translation_batches(pairs, source, target, batch_size=2, seed=0)
    watched: list[int] = []
    history = train(
        translator, batches, epochs=25, max_lr=0.05, progress=False, watch=watched.append, every=10
    )
    assert watched == [0, 10, 20]
    assert history.train_loss[-1] < 0.1 < history.train_loss[0]
    assert history.train_loss[-2] == pytest.approx(history.train_loss[-1], rel=0.02)
    found = translator.translate([pair.source for pair in pairs], max_len=5)
    assert [f.text for f in found] == [pair.target for pair in pairs]


def test_padding_is_no_part_of_the_loss() -> None:
    words = Vocabulary(["le chat"])
    logits, labels = torch.randn(2, 3, len(words)), torch.tensor([[4, 5, 2], [4, 2, words.pad]])
    loss = trainings.next_token_loss(words)
    logits.requires_grad_()
    loss(logits, labels).backward()
    assert logits.grad is not None and not logits.grad[1, 2].any() and logits.grad[1, 1].any()
    picked = logits.detach().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).flatten()[:5]
    torch.testing.assert_close(loss(logits.detach(), labels), -picked.mean())


def test_each_name_has_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def note(build: Any, seed: int, **options: Any) -> dict[str, Any]:
        called.append((build.args[0], seed, options))
        return {}

    monkeypatch.setattr(seq2seq, "on_grammar", note)
    for name in seq2seq.GRAMMAR:
        seq2seq.RUNS[name](7)
        short = {"size": 20_000, "epochs": 2} if name.startswith("short_") else {}
        assert called.pop() == (name, 7, short)
    chapters = [module.RUNS for module in command.MODULES]
    assert len(RUNS) == sum(map(len, chapters))  # no name twice


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = []

    def keep(name: str, runs: list[dict[str, Any]]) -> Path:
        kept.append((name, runs))
        return tmp_path

    for name in RUNS:
        monkeypatch.setitem(RUNS, name, lambda seed, name=name: {"name": name, "seed": seed})
    for name in PRETRAINED:
        monkeypatch.setitem(PRETRAINED, name, lambda name=name: tmp_path / name)
    monkeypatch.setattr(command, "store", keep)
    assert main(["attention", "lecture", "--seeds", "2"]) == 0
    assert [name for name, _ in kept] == ["attention", "lecture"]
    assert kept[0][1] == [{"name": "attention", "seed": 0}, {"name": "attention", "seed": 1}]
    kept.clear()
    assert main([]) == 0 and [name for name, _ in kept] == list(RUNS)
    capsys.readouterr()
    assert main(["--pretrained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"stored: {tmp_path / name}" for name in PRETRAINED]
    assert main(["--pretrained", "grammar_french"]) == 0
    assert capsys.readouterr().out == f"stored: {tmp_path / 'grammar_french'}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["attention", "luong"], "there is no training luong, only attention, "),
        (["--seeds", "0"], "got 0"),
        (["--pretrained", "attention"], "there is no training attention, only grammar_french"),
    ],
)
def test_the_command_refuses_before_it_trains(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for names in (RUNS, PRETRAINED):
        for name in names:
            monkeypatch.setitem(names, name, lambda *_: pytest.fail("something was trained"))
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("tell", [True, False])
def test_two_languages_from_one_model(tell: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is told the language gets each one right; else there is one answer for both."""
    pairs = {"french": Pair("the cat", "le chat"), "spanish": Pair("the cat", "el gato")}
    monkeypatch.setattr(
        seq2seq,
        "grammar",
        lambda language, **_: SimpleNamespace(
            train=[pairs[language]] * 1500, test=[pairs[language]] * 2
        ),
    )
    right = seq2seq.run_languages(tell, 0)["right"]
    if tell:
        assert right == {"french": 1.0, "spanish": 1.0}
    else:
        assert right["french"] + right["spanish"] <= 1.0


def test_a_kept_translator_is_judged_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained here: its file holds the very numbers whose translations were counted."""
    judged: dict[str, Any] = {}

    def judge(translator: Any, pairs: list[Pair]) -> dict[str, float]:
        judged.update({k: v.clone() for k, v in translator.model.state_dict().items()})
        return {"all": 0.25}

    monkeypatch.setattr(common, "grammar", lambda **_: SimpleNamespace(train=[SIGNPOST], test=[]))
    monkeypatch.setattr(common, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(common, "exact_match", judge)
    monkeypatch.setattr("attn_course.data.checkpoints.FOLDER", tmp_path)
    encoder, decoder = {"embed_dim": 4, "hidden_dim": 3}, {"embed_dim": 4, "hidden_dim": 6}
    path = common.keep("tiny", encoder, decoder, build_translator)
    assert path == tmp_path / "tiny.safetensors"
    config, state = pretrained("tiny")
    assert config["exact_match"] == 0.25 and config["source"] == sorted(SIGNPOST.source.split())
    assert config["encoder"] == encoder and config["decoder"] == decoder
    assert state.keys() == judged.keys()
    assert all(bool((state[key] == judged[key]).all()) for key in state)


@pytest.mark.parametrize("name", [name for name in PRETRAINED if name.startswith("grammar")])
def test_each_translator_that_comes_with_the_course_is_what_it_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The options that it is made with today are the ones that it was stored with."""
    monkeypatch.setattr(common, "save_pretrained", lambda name, config, state: (name, config))
    monkeypatch.setattr(common, "train", lambda *args, **kwargs: None)
    monkeypatch.setattr(common, "exact_match", lambda *_: {"all": 0.0})
    kept, config = PRETRAINED[name]()  # type: ignore[misc]
    stored_config, _ = pretrained(name)
    assert kept == name
    assert {**config, "exact_match": None} == {**stored_config, "exact_match": None}


def test_bleu_takes_all_references_and_unknown_tokens() -> None:
    """Against sacrebleu's own count: two references for one sentence, one for the other."""
    answers = {"the cat": "le chat noir dort", "a dog": "un chien"}
    asked: list[dict[str, Any]] = []

    def translate(sentences: list[str], **options: Any) -> list[SimpleNamespace]:
        asked.append(options)
        return [SimpleNamespace(text=answers[sentence]) for sentence in sentences]

    references = {"the cat": ["le chat dort", "le chat noir dort"], "a dog": ["un gros chien"]}
    found = common.bleu(SimpleNamespace(translate=translate), references)  # type: ignore[arg-type]
    expected = sacrebleu.corpus_bleu(
        ["le chat noir dort", "un chien"],
        [["le chat dort", "un gros chien"], ["le chat noir dort", None]],  # type: ignore[list-item]
        tokenize="none",
    ).score
    assert found["bleu"]["greedy"] == found["bleu"]["beam of 4"] == round(expected, 2)
    assert found["bleu"]["source, untranslated"] == 0.0 and found["test_sentences"] == 2
    assert [options["width"] for options in asked] == [1, 4]
    assert all(options["unknown"] == "unk" for options in asked)
