"""From meanings to a data set: slices, links and a split without leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from attn_course._validation import check_choice, check_integer
from attn_course.data.pairs import Pair, Translations
from attn_course.data.phrasebook import english, french, lexicon, spanish
from attn_course.data.phrasebook.meaning import Clause, NounPhrase, Sentence, Word
from attn_course.data.phrasebook.sample import Sampler

#: What the test part is scored on, each by itself.
SLICES = ("long", "crossing", "agreement", "reversible", "negation")
#: Bins of source lengths, in tokens, first and last included.
LENGTH_BINS = ((3, 5), (6, 8), (9, 11), (12, 14), (15, 20))
#: A source sentence of at least so many tokens is long.
LONG = 14
#: A word that stands so many tokens from the noun that it agrees with agrees at a distance.
DISTANT = 4

TRANSLATORS: dict[str, Callable[[Sentence], list[Word]]] = {
    "french": french.sentence,
    "spanish": spanish.sentence,
}
#: How many sentences of each bin the test and the validation part have.
TEST_PER_BIN, VALIDATION_PER_BIN = 200, 100
LEAST, MOST = 2_000, 60_000


class Row(NamedTuple):
    """A sentence of the data set before it is put into another language."""

    meaning: Sentence
    source: list[Word]
    slices: frozenset[str]


def grammar(language: str = "french", *, size: int = 20_000, seed: int = 0) -> Translations:
    """Sentences of a small English grammar, each with its one translation.

    About 230 English words make sentences of 3 to 20 tokens about people, animals, food
    and things. Each has exactly one translation here, so exact match is a fair score.

    The split depends on ``size`` and ``seed`` alone: in another language the same call
    gives the same source sentences, in the same order and parts. The test and the
    validation part depend on ``seed`` alone.

    The slices of a pair:

    - ``"long"``: the source has 14 tokens or more.
    - ``"crossing"``: an adjective and its noun are in opposite order in the translation.
    - ``"agreement"``: in the translation, a word agrees with a noun 4 or more tokens away.
    - ``"reversible"``: the sentence with subject and object exchanged is in the same part.
    - ``"negation"``: a main clause has "not" or "never".

    Args:
        language: ``"french"`` or ``"spanish"``.
        size: How many sentences to learn from, 2,000 to 60,000.
        seed: Chooses the sentences.

    Returns:
        ``size`` pairs to learn from, 500 for validation and 1,000 for the test: from each
        of ``LENGTH_BINS`` the same number. Every word of the last two parts is in the
        first. The first test pair is ``SIGNPOST``.

    Raises:
        TypeError: ``size`` or ``seed`` is no integer.
        ValueError: There is no such language, or ``size`` is out of range.

    Example:
        >>> data = grammar(size=2_000)
        >>> len(data.train), len(data.validation), len(data.test)
        (2000, 500, 1000)
        >>> data.test[0].source
        'the small black cat did not eat two red apples'
        >>> data.test[0].target
        "le petit chat noir n' a pas mangé deux pommes rouges"
        >>> grammar("spanish", size=2_000).test[0].target
        'el gato negro pequeño no comió dos manzanas rojas'
    """
    check_choice("language", language, TRANSLATORS)
    for name, value in (("size", size), ("seed", seed)):
        check_integer(name, value)
    if not LEAST <= size <= MOST:
        raise ValueError(f"size must lie in [{LEAST}, {MOST}], got {size}.")
    say = TRANSLATORS[language]
    return Translations(*([_pair(row, say) for row in part] for part in _split(size, seed)))


def _pair(row: Row, say: Callable[[Sentence], list[Word]]) -> Pair:
    """Both sentences, what links them, and the slices that they are in."""
    source, target = row.source, say(row.meaning)
    places: dict[str, list[int]] = {}
    for i, word in enumerate(source):
        for atom in word.atoms:
            places.setdefault(atom, []).append(i)
    links = {(i, j) for j, word in enumerate(target) for a in word.atoms for i in places.get(a, ())}

    found = set(row.slices)
    if len(source) >= LONG:
        found.add("long")
    heads = {word.atoms[0]: j for j, word in reversed(list(enumerate(target)))}
    for j, word in enumerate(target):
        if word.head is None:
            continue
        noun = heads[word.head]
        if abs(j - noun) >= DISTANT:
            found.add("agreement")
        if noun < j and word.atoms[0].endswith(("before", "after")):  # English: noun last
            found.add("crossing")
    return Pair(_text(source), _text(target), frozenset(found), tuple(sorted(links)))


def _rows(group: list[Sentence]) -> list[Row]:
    """The rows of sentences that belong together: a reversible one and its counterpart."""
    known = {"reversible"} if len(group) == 2 else set()
    if any(clause.negation for clause in group[0].clauses):
        known.add("negation")
    return [Row(meaning, english.sentence(meaning), frozenset(known)) for meaning in group]


def _words(row: Row) -> set[str]:
    """Each word of a row in each language, with the language."""
    words = {f"english {word.text}" for word in row.source}
    for language, say in TRANSLATORS.items():
        words |= {f"{language} {word.text}" for word in say(row.meaning)}
    return words


@lru_cache(maxsize=2)
def _split(size: int, seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """The three parts, whatever the language."""
    groups = _fresh(seed)
    test, passed_over = _quota(groups, TEST_PER_BIN, _rows([_signpost()]))
    validation, more = _quota(groups, VALIDATION_PER_BIN, [])

    # Each word of the other parts gets its place in the training part: while words are
    # missing, that many places are kept for them.
    missing = set(chain.from_iterable(_words(row) for row in test + validation))
    train: list[Row] = []
    for group in chain(passed_over, more, groups):
        still = missing.difference(*(_words(row) for row in group)) if missing else missing
        if len(train) + len(group) + len(still) <= size:
            train += group
            missing = still
            if len(train) == size:
                break
    return train, validation, test


def _fresh(seed: int) -> Iterator[list[Row]]:
    """Groups without a sentence that was there before, or one that is too short or too long."""
    seen = {SIGNPOST.source}
    for group in map(_rows, Sampler(seed)):
        sources = {_text(row.source) for row in group}
        if len(sources) == len(group) and seen.isdisjoint(sources):
            if all(LENGTH_BINS[0][0] <= len(row.source) <= LENGTH_BINS[-1][1] for row in group):
                seen |= sources
                yield group


def _quota(
    groups: Iterator[list[Row]], per_bin: int, rows: list[Row]
) -> tuple[list[Row], list[list[Row]]]:
    """``rows`` and more, ``per_bin`` of each bin of lengths; and the groups passed over."""
    passed_over: list[list[Row]] = []
    counts = Counter(_bin(row) for row in rows)
    while sum(counts.values()) < per_bin * len(LENGTH_BINS):
        group = next(groups)
        after = counts + Counter(_bin(row) for row in group)
        if max(after.values()) <= per_bin:
            rows, counts = rows + group, after
        else:
            passed_over.append(group)
    return rows, passed_over


def _bin(row: Row) -> int:
    return next(k for k, (_, last) in enumerate(LENGTH_BINS) if len(row.source) <= last)


def _text(words: list[Word]) -> str:
    return " ".join(word.text for word in words)


def _signpost() -> Sentence:
    noun = {noun.english[0]: noun for noun in lexicon.nouns}
    adjective = {a.english: a for a in lexicon.before + lexicon.after}
    eat = next(verb for verb in lexicon.verbs if verb.english[0] == "eat")
    cat = NounPhrase(1, "the", noun["cat"], False, adjective["small"], adjective["black"])
    apples = NounPhrase(2, 2, noun["apple"], True, None, adjective["red"])
    return Sentence(4, (Clause(3, (cat,), eat, True, "not", (apples,)),))


#: The sentence, with its translation, that the heatmaps of all chapters return to; always in
#: the test part.
SIGNPOST = _pair(_rows([_signpost()])[0], french.sentence)
