"""What the trainings share: the loop, the loss and the judges."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attn_course.benchmarks.trainings.recipe import one_cycle, round_to_stored
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
from attn_course.seq2seq import Translator
from attn_course.training import History, fit, seed_everything

#: For the grammar: sentences, passes over them, sentences a step, highest learning rate.
SIZE, EPOCHS, BATCH_SIZE, MAX_LR = 50_000, 3, 64, 4e-3

#: A short training, for comparing many variants.
SHORT_SIZE, SHORT_EPOCHS = 20_000, 2

Record = dict[str, Any]

#: Makes an untrained translator for two vocabularies.
Build = Callable[[Vocabulary, Vocabulary], Translator]

#: Makes the loss, a function of logits and labels, for the vocabulary that is written.
MakeLoss = Callable[[Vocabulary], Callable[[Tensor, Tensor], Tensor]]


def train(
    translator: Translator,
    batches: TranslationBatches,
    *,
    epochs: int = EPOCHS,
    max_lr: float = MAX_LR,
    loss: MakeLoss | None = None,
    warmup: float = 0.04,
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
        loss: Makes the loss; ``None`` for ``next_token_loss``.
        warmup: The share of the steps in which the learning rate rises.
        seed: Of the shuffling and of dropout.
        progress: Show a progress bar where someone can see it.
        watch: Called with the number of steps done, before the first and every ``every``.
        every: How many steps lie between two calls.

    Returns:
        What ``fit`` returns.
    """
    total = epochs * len(batches)
    warmup = max(warmup, 2 / (total + 1))  # it has to rise for a step at least
    optimizer = one_cycle(translator.model.parameters(), max_lr, total, warmup=warmup)
    steps = itertools.count(1)

    def after_step(*_: Any) -> None:
        if (step := next(steps)) % every == 0 and watch is not None:
            watch(step)

    optimizer.register_step_post_hook(after_step)
    if watch is not None:
        watch(0)
    return fit(
        translator.model,
        batches.for_fit(),
        (loss or next_token_loss)(translator.target),
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


def on_grammar(
    build: Build, seed: int, *, size: int = SIZE, batch_size: int = BATCH_SIZE, **training: Any
) -> Record:
    """Train on the grammar; judge on sentences that the model has not seen.

    Args:
        build: Makes the translator, once the vocabularies are known.
        seed: Of the parameters, of the shuffling and of dropout.
        size: How many sentences to draw.
        batch_size: Sentences a step.
        training: Options of ``train``.

    Returns:
        What ``about`` and ``exact_match`` say.
    """
    translator, seconds = _learn(build, seed, size, batch_size, training)
    return about(translator, seed, seconds) | exact_match(translator, grammar(size=size).test)


def keep(
    name: str,
    encoder: dict[str, Any],
    decoder: dict[str, Any],
    build: Callable[..., Translator],
    *,
    seed: int = 0,
    size: int = SIZE,
    batch_size: int = BATCH_SIZE,
    **training: Any,
) -> Path:
    """Train and store a translator that comes with the course, in half precision.

    Args:
        name: Of its file.
        encoder: The options that are stored with it.
        decoder: Likewise.
        build: ``build(encoder, decoder, source, target)`` makes it.
        seed: As in ``on_grammar``, like all that follows.
        size: See there.
        batch_size: See there.
        training: See there.
    """

    def make(source: Vocabulary, target: Vocabulary) -> Translator:
        return build(encoder, decoder, source, target)

    translator, _ = _learn(make, seed, size, batch_size, training)
    round_to_stored(translator.model)
    config = {
        "encoder": encoder,
        "decoder": decoder,
        "source": translator.source.tokens[4:],
        "target": translator.target.tokens[4:],
        "seed": seed,
        "exact_match": exact_match(translator, grammar(size=size).test)["all"],
    }
    return save_pretrained(name, config, translator.model.state_dict())


def _learn(
    build: Build, seed: int, size: int, batch_size: int, training: dict[str, Any]
) -> tuple[Translator, float]:
    """A translator trained on the grammar, and the seconds that it took."""
    data = grammar(size=size)
    source, target = vocabularies(data.train)
    seed_everything(seed)
    translator = build(source, target)
    batches = translation_batches(data.train, source, target, batch_size=batch_size, seed=seed)
    start = time.perf_counter()
    train(translator, batches, seed=seed, **training)
    return translator, time.perf_counter() - start


def on_tatoeba(build: Build, seed: int, *, train_pairs: int = 80_000, **training: Any) -> Record:
    """Train on a slice of Tatoeba; BLEU on English sentences that the model has not seen.

    Args:
        build: As in ``on_grammar``.
        seed: As in ``on_grammar``.
        train_pairs: How many pairs to learn from, of up to 12 tokens.
        training: As in ``on_pairs``.
    """
    data = tatoeba(max_len=12, held_out=0.05)
    return on_pairs(build, seed, data.train[:train_pairs], data.test, min_freq=3, **training)


def on_pairs(
    build: Build,
    seed: int,
    pairs: Sequence[Pair],
    held_out: Sequence[Pair],
    *,
    min_freq: int,
    judged: int = 2_000,
    max_len: int = 30,
    batch_size: int = BATCH_SIZE,
    **training: Any,
) -> Record:
    """Train on real sentences; BLEU on others.

    Args:
        build: As in ``on_grammar``.
        seed: As in ``on_grammar``.
        pairs: What to learn from.
        held_out: What to be judged by: no source of ``pairs`` is among them.
        min_freq: How often a token must occur in ``pairs`` not to be ``<unk>``.
        judged: How many different sources of ``held_out`` to translate, at most.
        max_len: The most tokens to write.
        batch_size: Sentences a step.
        training: Options of ``train``.
    """
    source, target = vocabularies(pairs, min_freq=min_freq)
    seed_everything(seed)
    translator = build(source, target)
    batches = translation_batches(
        pairs, source, target, batch_size=batch_size, seed=seed, unknown="unk"
    )
    start = time.perf_counter()
    train(translator, batches, seed=seed, **training)
    seconds = time.perf_counter() - start
    references: dict[str, list[str]] = {}
    for pair in held_out:
        references.setdefault(pair.source, []).append(pair.target)
    asked = dict(itertools.islice(references.items(), judged))
    return (
        about(translator, seed, seconds)
        | {"train_pairs": len(pairs), "vocabulary": [len(source), len(target)]}
        | bleu(translator, asked, max_len=max_len)
    )


def bleu(translator: Translator, references: dict[str, list[str]], *, max_len: int = 30) -> Record:
    """BLEU of the greedy and of the beam search, and of copying the source.

    Both sides are tokenised and in lower case already, so the score is taken of the tokens.

    Args:
        translator: Translates the sentences; tokens that it does not know are ``<unk>``.
        references: Source -> its translations.
        max_len: The most tokens to write.
    """
    import sacrebleu

    asked = list(references)
    most = max(map(len, references.values()))
    columns: list[Any] = [  # a sentence with fewer translations than others has None for the rest
        [references[text][i] if i < len(references[text]) else None for text in asked]
        for i in range(most)
    ]

    def score(found: list[str]) -> float:
        whole = sacrebleu.corpus_bleu(found, columns, tokenize="none", force=True)
        return round(whole.score, 2)

    texts = {
        name: [
            found.text
            for start in range(0, len(asked), 250)
            for found in translator.translate(
                asked[start : start + 250],
                width=width,
                length_penalty=1.0 if width > 1 else 0.0,
                max_len=max_len,
                unknown="unk",
            )
        ]
        for name, width in (("greedy", 1), ("beam of 4", 4))
    }
    examples = [
        {"source": text, "found": found, "reference": references[text][0]}
        for text, found in zip(asked[:12], texts["beam of 4"], strict=False)
    ]
    return {
        "test_sentences": len(asked),
        "sacrebleu": sacrebleu.__version__,
        "bleu": {name: score(found) for name, found in texts.items()}
        | {"source, untranslated": score(asked)},
        "examples": examples,
    }


def about(translator: Translator, seed: int, seconds: float) -> Record:
    """What every record of a training holds: seed, number of parameters, seconds."""
    return {
        "seed": seed,
        "parameters": sum(p.numel() for p in translator.model.parameters()),
        "seconds": round(seconds, 1),
    }


def _sides(pairs: Sequence[Pair]) -> tuple[list[str], list[str]]:
    return [pair.source for pair in pairs], [pair.target for pair in pairs]
