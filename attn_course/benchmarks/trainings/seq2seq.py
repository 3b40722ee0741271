"""Trainings of chapter 3 that take longer than a class: run here, stored, shown there.

``python -m attn_course.benchmarks.trainings [NAMES] [--seeds N]`` trains and stores one JSON
file a name in ``results/trainings``, with device, versions and date. ``make pretrained`` calls
``--pretrained``, which trains the translator that comes with the course.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attn_course._validation import check_choice
from attn_course.benchmarks import environment
from attn_course.benchmarks.results import RESULTS
from attn_course.data import (
    LENGTH_BINS,
    SLICES,
    Pair,
    TranslationBatches,
    Vocabulary,
    grammar,
    save_pretrained,
    tatoeba,
    translation_batches,
)
from attn_course.seq2seq import Translator, build_translator
from attn_course.training import History, fit, seed_everything

TRAININGS = RESULTS / "trainings"

#: What the chapter trains: a bidirectional encoder, a decoder with additive attention.
ENCODER: dict[str, Any] = {"embed_dim": 64, "hidden_dim": 64}
DECODER: dict[str, Any] = {"embed_dim": 64, "hidden_dim": 128}

#: For the grammar: sentences, passes over them, sentences a step, highest learning rate.
SIZE, EPOCHS, BATCH_SIZE, MAX_LR = 50_000, 3, 64, 4e-3

#: A short training, for comparing many variants.
SHORT_SIZE, SHORT_EPOCHS = 20_000, 2

#: Name -> options that differ from the chapter's. Where those take away parameters, or add
#: some, states are wider or narrower, so that all have about equally many.
GRAMMAR: dict[str, dict[str, Any]] = {
    "attention": {},
    "bottleneck": {"encoder": {"hidden_dim": 72}, "decoder": {"hidden_dim": 127, "scoring": None}},
    "one_way": {"encoder": {"hidden_dim": 101, "bidirectional": False}},
    "uniform": {"decoder": {"hidden_dim": 137, "scoring": "uniform"}},
    "token_query": {"decoder": {"hidden_dim": 124, "query": ("token",)}},
    "short_additive": {},
    "short_last_context": {"decoder": {"hidden_dim": 113, "query": ("state", "context")}},
    "short_generated": {"decoder": {"attend_generated": True}},
    "short_window": {"decoder": {"window": 3}},
    "short_no_v": {"decoder": {"scoring": "no_v"}},
    **{
        f"short_{name}": {"decoder": {"hidden_dim": 127, "scoring": name}}
        for name in ("dot", "scaled_dot", "bilinear", "cosine")
    },
}

Record = dict[str, Any]


def train(
    translator: Translator,
    batches: TranslationBatches,
    *,
    epochs: int = EPOCHS,
    max_lr: float = MAX_LR,
    seed: int = 0,
    progress: bool = True,
    watch: Callable[[int], None] | None = None,
    every: int = 100,
) -> History:
    """Train a translator, with a learning rate that rises fast and then falls to nothing.

    Args:
        translator: What to train, in place.
        batches: What to learn from.
        epochs: Passes over it.
        max_lr: The highest learning rate.
        seed: Of the shuffling and of dropout.
        progress: Show a progress bar where someone can see it.
        watch: Called with the number of steps done, before the first and every ``every``.
        every: How many steps lie between two calls.

    Returns:
        What ``fit`` returns.

    Reference:
        Smith and Topin (2019), Super-convergence, for the schedule.
    """
    optimizer = torch.optim.Adam(translator.model.parameters(), betas=(0.9, 0.98), fused=True)
    total = epochs * len(batches) + 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        total_steps=total,
        pct_start=max(0.04, 2 / total),  # it has to rise for a step at least
    )
    steps = itertools.count(1)

    def after_step(*_: Any) -> None:
        schedule.step()
        if (step := next(steps)) % every == 0 and watch is not None:
            watch(step)

    optimizer.register_step_post_hook(after_step)
    if watch is not None:
        watch(0)
    return fit(
        translator.model,
        batches.for_fit(),
        next_token_loss(translator.target),
        epochs=epochs,
        optimizer=optimizer,
        clip_norm=1.0,
        seed=seed,
        progress=progress,
    )


def next_token_loss(target: Vocabulary) -> Callable[[Tensor, Tensor], Tensor]:
    """The cross-entropy of the right next token; padding is left out of the mean."""

    def loss_fn(logits: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=target.pad
        )

    return loss_fn


def vocabularies(pairs: Sequence[Pair], min_freq: int = 1) -> tuple[Vocabulary, Vocabulary]:
    """The words of the sources, and of the targets, in alphabetical order."""
    counted = (Vocabulary([text for text in texts], min_freq=min_freq) for texts in _sides(pairs))
    source, target = (Vocabulary([sorted(vocabulary.tokens[4:])]) for vocabulary in counted)
    return source, target


def exact_match(translator: Translator, pairs: Sequence[Pair]) -> dict[str, Any]:
    """The share of sentences that are translated exactly, greedily.

    Returns:
        ``"all"``; ``"by_length"``, one for each of ``LENGTH_BINS``; ``"by_slice"``, name ->
        share.

    Raises:
        ValueError: There are no pairs, or none of a length or a slice.
    """
    found = translator.translate([pair.source for pair in pairs])
    right = [f.text == pair.target for f, pair in zip(found, pairs, strict=True)]

    def share(keep: Callable[[Pair], bool]) -> float:
        hits = [r for r, pair in zip(right, pairs, strict=True) if keep(pair)]
        if not hits:
            raise ValueError("pairs must hold sentences of each length and slice.")
        return round(sum(hits) / len(hits), 4)

    lengths = [
        share(lambda p, a=low, b=high: a <= len(p.source.split()) <= b)  # type: ignore[misc]
        for low, high in LENGTH_BINS
    ]
    slices = {name: share(lambda p, name=name: name in p.slices) for name in SLICES}  # type: ignore[misc]
    return {"all": share(lambda _: True), "by_length": lengths, "by_slice": slices}


def run_grammar(name: str, seed: int) -> Record:
    """Train one of ``GRAMMAR``; judge it on sentences that it has not seen."""
    options, short = GRAMMAR[name], name.startswith("short_")
    data = grammar(size=SHORT_SIZE if short else SIZE)
    source, target = vocabularies(data.train)
    seed_everything(seed)
    translator = build_translator(
        ENCODER | options.get("encoder", {}), DECODER | options.get("decoder", {}), source, target
    )
    batches = translation_batches(data.train, source, target, batch_size=BATCH_SIZE, seed=seed)
    start = time.perf_counter()
    train(translator, batches, epochs=SHORT_EPOCHS if short else EPOCHS, seed=seed)
    seconds = time.perf_counter() - start
    return _about(translator, seed, seconds) | exact_match(translator, data.test)


def run_languages(tell: bool, seed: int) -> Record:
    """One model writes French and Spanish; which one only the query can tell, if at all."""
    parts = [grammar(language, size=SHORT_SIZE) for language in ("french", "spanish")]
    pairs = parts[0].train + parts[1].train
    source, target = vocabularies(pairs)
    seed_everything(seed)
    options = {"query": ("state", "language"), "num_languages": 2} if tell else {}
    translator = build_translator(ENCODER, DECODER | options, source, target)
    languages = [0] * len(parts[0].train) + [1] * len(parts[1].train)
    batches = translation_batches(
        pairs,
        source,
        target,
        batch_size=BATCH_SIZE,
        seed=seed,
        languages=languages if tell else None,
    )
    start = time.perf_counter()
    train(translator, batches, seed=seed)
    seconds = time.perf_counter() - start
    right = {}
    for language, (name, data) in enumerate(zip(("french", "spanish"), parts, strict=True)):
        asked = [pair.source for pair in data.test]
        found = translator.translate(asked, language=language if tell else None)
        hits = [f.text == pair.target for f, pair in zip(found, data.test, strict=True)]
        right[name] = round(sum(hits) / len(hits), 4)
    return _about(translator, seed, seconds) | {"right": right}


def run_tatoeba(seed: int, *, train_pairs: int = 80_000, epochs: int = 4) -> Record:
    """A small model on a slice of Tatoeba; BLEU on English sentences that it has not seen."""
    import sacrebleu

    data = tatoeba(max_len=12, held_out=0.05)
    pairs = data.train[:train_pairs]
    source, target = vocabularies(pairs, min_freq=3)
    seed_everything(seed)
    translator = build_translator(
        {"embed_dim": 128, "hidden_dim": 128, "dropout": 0.1},
        {"embed_dim": 128, "hidden_dim": 256, "dropout": 0.1},
        source,
        target,
    )
    batches = translation_batches(
        pairs, source, target, batch_size=BATCH_SIZE, seed=seed, unknown="unk"
    )
    start = time.perf_counter()
    train(translator, batches, epochs=epochs, max_lr=2e-3, seed=seed)
    seconds = time.perf_counter() - start

    references: dict[str, list[str]] = {}
    for pair in data.test:
        references.setdefault(pair.source, []).append(pair.target)
    asked = list(references)[:2_000]
    most = max(len(references[text]) for text in asked)
    columns: list[Any] = [  # a sentence with fewer translations than others has None for the rest
        [references[text][i] if i < len(references[text]) else None for text in asked]
        for i in range(most)
    ]
    bleu, texts = {}, {}
    for name, width in (("greedy", 1), ("beam of 4", 4)):
        texts[name] = [
            found.text
            for start_ in range(0, len(asked), 250)
            for found in translator.translate(
                asked[start_ : start_ + 250],
                width=width,
                length_penalty=1.0 if width > 1 else 0.0,
                max_len=30,
                unknown="unk",
            )
        ]
        # Both sides are tokenised and in lower case already.
        score = sacrebleu.corpus_bleu(texts[name], columns, tokenize="none", force=True)
        bleu[name] = round(score.score, 2)
    copied = sacrebleu.corpus_bleu(asked, columns, tokenize="none", force=True)
    bleu["source, untranslated"] = round(copied.score, 2)
    examples = [
        {"source": text, "found": found, "reference": references[text][0]}
        for text, found in zip(asked[:12], texts["beam of 4"], strict=False)
    ]
    return _about(translator, seed, seconds) | {
        "train_pairs": len(pairs),
        "test_sentences": len(asked),
        "vocabulary": [len(source), len(target)],
        "sacrebleu": sacrebleu.__version__,
        "bleu": bleu,
        "examples": examples,
    }


#: The four sentences of the lecture, and their translations there.
LECTURE = (
    ("go .", "va !"),
    ("i lost .", "j'ai perdu ."),
    ("he's calm .", "il est calme ."),
    ("i'm home .", "je suis chez moi ."),
)


def run_lecture(seed: int) -> Record:
    """The lecture's model at the lecture's settings, on the 512 pairs that d2l gives it."""
    from attn_course import _d2l

    d2l_bleu = _d2l.load().bleu
    # The first 512 are trained on; the vocabularies count the 128 after them as well.
    pairs, counted = ([pair for part in tatoeba(size=n) for pair in part] for n in (512, 640))
    source, target = vocabularies(counted, min_freq=2)
    seed_everything(seed)
    options = {"embed_dim": 256, "hidden_dim": 256, "num_layers": 2, "dropout": 0.4}
    translator = build_translator(options | {"bidirectional": False}, options, source, target)
    for name, weight in translator.model.named_parameters():
        if weight.ndim == 2 and "embedding" not in name:  # as the lecture starts
            nn.init.xavier_uniform_(weight)
    batches = translation_batches(pairs, source, target, batch_size=128, seed=seed, unknown="unk")
    start = time.perf_counter()
    fit(
        translator.model,
        batches.for_fit(),
        next_token_loss(target),
        epochs=15,
        lr=0.005,
        clip_norm=1.0,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    found = translator.translate(
        [text for text, _ in LECTURE], max_len=9, unknown="unk", need_weights=True
    )
    sentences = [
        {
            "source": text,
            "found": f.text,
            "reference": right,
            "bleu": round(d2l_bleu(f.text, right, k=2) if f.text else 0.0, 3),
            "weights": [[round(w, 4) for w in row] for row in torch.as_tensor(f.weights).tolist()],
        }
        for f, (text, right) in zip(found, LECTURE, strict=True)
    ]
    return _about(translator, seed, seconds) | {"train_pairs": len(pairs), "sentences": sentences}


def run(name: str, seed: int) -> Record:
    """Run one training; what comes back depends on which.

    Raises:
        ValueError: There is none of that name.
    """
    check_choice("name", name, NAMES)
    if name in GRAMMAR:
        return run_grammar(name, seed)
    others: dict[str, Callable[[int], Record]] = {
        "language_query": lambda s: run_languages(True, s),
        "no_language": lambda s: run_languages(False, s),
        "tatoeba": run_tatoeba,
        "lecture": run_lecture,
    }
    return others[name](seed)


NAMES = (*GRAMMAR, "language_query", "no_language", "tatoeba", "lecture")


def find_training(name: str, directory: Path = TRAININGS) -> Record:
    """A stored training.

    Args:
        name: One of ``NAMES``.
        directory: Where they lie.

    Returns:
        ``runs``, one record a seed; ``note``, a line that says on what and when it ran;
        ``device``, ``versions``, ``date``.

    Raises:
        ValueError: There is no training of that name, or none is stored.
    """
    check_choice("name", name, NAMES)
    path = directory / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{name} has not been run: python -m attn_course.benchmarks.trainings")
    record: Record = json.loads(path.read_text(encoding="utf-8"))
    runs = record["runs"]
    seconds = round(sum(r["seconds"] for r in runs) / len(runs))
    record["note"] = (
        f"stored run: {len(runs)} seed{'s' if len(runs) > 1 else ''}, {seconds} s each, "
        f"{record['device']['name']}, torch {record['versions']['torch']}, {record['date'][:10]}"
    )
    return record


def store(name: str, runs: list[Record], directory: Path = TRAININGS) -> Path:
    """Write a training's file whole, or leave what was there."""
    about = environment.describe(torch.device("cpu"))
    record = {
        "name": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **about,
        "runs": runs,
    }
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    handle, aside = tempfile.mkstemp(dir=directory, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1, ensure_ascii=False, allow_nan=False)
            file.write("\n")
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


#: Name of a translator that comes with the course -> which of ``GRAMMAR`` it is.
PRETRAINED = {"grammar_french": "attention", "grammar_french_one_way": "one_way"}


def make_pretrained(name: str, seed: int = 0) -> Path:
    """Train and store a translator that comes with the course, in half precision."""
    data, options = grammar(size=SIZE), GRAMMAR[PRETRAINED[name]]
    encoder, decoder = ENCODER | options.get("encoder", {}), DECODER | options.get("decoder", {})
    source, target = vocabularies(data.train)
    seed_everything(seed)
    translator = build_translator(encoder, decoder, source, target)
    batches = translation_batches(data.train, source, target, batch_size=BATCH_SIZE, seed=seed)
    train(translator, batches, seed=seed)
    with torch.no_grad():  # what is judged is what is stored
        for parameter in translator.model.parameters():
            parameter.copy_(parameter.half().float())
    config = {
        "encoder": encoder,
        "decoder": decoder,
        "source": source.tokens[4:],
        "target": target.tokens[4:],
        "seed": seed,
        "exact_match": exact_match(translator, data.test)["all"],
    }
    return save_pretrained(name, config, translator.model.state_dict())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m attn_course.benchmarks.trainings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each; 1")
    parser.add_argument("--pretrained", action="store_true", help="make the course's translator")
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no training {', '.join(sorted(unknown))}, only {', '.join(NAMES)}")
    if options.pretrained:
        for name in PRETRAINED:
            print(f"stored: {make_pretrained(name)}", flush=True)
        return 0
    for name in options.names or NAMES:
        runs = [run(name, seed) for seed in range(options.seeds)]
        print(f"stored: {store(name, runs)}", *runs, sep="\n  ", flush=True)
    return 0


def _sides(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [pair.source for pair in pairs], [pair.target for pair in pairs]


def _about(translator: Translator, seed: int, seconds: float) -> Record:
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in translator.model.parameters()),
        "seconds": round(seconds, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
