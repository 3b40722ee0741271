"""English words for a meaning."""

from __future__ import annotations

from attn_course.data.phrasebook.lexicon import MONTHS, ORDINALS, WEEKDAYS, Adjective
from attn_course.data.phrasebook.meaning import (
    Agreement,
    Clause,
    Date,
    NounPhrase,
    Place,
    Sentence,
    Word,
)

SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen".split()
)
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()


def sentence(meaning: Sentence) -> list[Word]:
    """The sentence, word by word."""
    words: list[Word] = []
    for number, part in enumerate(meaning.clauses):
        if number:
            words.append(Word(meaning.conjunction, (f"{meaning.key}conjunction",)))
        words += clause(part, None)
    if meaning.date is None:
        return words
    if meaning.date_first:
        return [*date(meaning.date), Word(",", (f"{meaning.key}comma",)), *words]
    return [*words, *date(meaning.date)]


def date(meaning: Date) -> list[Word]:
    """``on monday``, ``in may``, ``on monday the third of may``."""
    weekday, month = (f"{meaning.key}weekday",), (f"{meaning.key}month",)
    if meaning.weekday is None:
        assert meaning.month is not None
        return [Word("in", (f"{meaning.key}on",)), Word(MONTHS[meaning.month][0], month)]
    words = [Word("on", (f"{meaning.key}on",)), Word(WEEKDAYS[meaning.weekday][0], weekday)]
    if meaning.day is not None and meaning.month is not None:
        words.append(Word("the", (f"{meaning.key}the",)))
        words.append(Word(ORDINALS[meaning.day - 1], (f"{meaning.key}day",)))
        words.append(Word("of", (f"{meaning.key}of",)))
        words.append(Word(MONTHS[meaning.month][0], month))
    return words


def clause(meaning: Clause, antecedent: Agreement | None) -> list[Word]:
    """A main clause, or a relative one about ``antecedent``."""
    words: list[Word] = []
    if meaning.gap:
        words.append(Word("that", (f"{meaning.key}that",)))
    if meaning.gap != "subject":
        words += _subject(meaning)
    words += _verb(meaning, meaning.agreement(antecedent))
    for number, thing in enumerate(meaning.objects):
        if number:
            words.append(Word("and", (f"{thing.key}and",)))
        words += phrase(thing)
    return words + (place(meaning.place) if meaning.place else [])


def _subject(meaning: Clause) -> list[Word]:
    if isinstance(meaning.subject, str):
        return [Word(meaning.subject, (f"{meaning.key}subject",))]
    first, *others = meaning.subject
    words = phrase(first)
    for other in others:
        words += [Word("and", (f"{other.key}and",)), *phrase(other)]
    return words


def _verb(meaning: Clause, subject: Agreement) -> list[Word]:
    verb, tense = f"{meaning.key}verb", f"{meaning.key}tense"
    no = [Word(meaning.negation, (f"{meaning.key}not",))] if meaning.negation else []
    if isinstance(meaning.verb, Adjective):
        pair = ("was", "were") if meaning.past else ("is", "are")
        adjective = Word(meaning.verb.english, (f"{meaning.key}adjective",))
        return [Word(pair[subject.plural], (verb, tense), subject.head), *no, adjective]
    base, third, past = (form.split("_") for form in meaning.verb.english)
    singular = subject.person == 3 and not subject.plural
    if meaning.negation == "not":
        helper = "did" if meaning.past else "does" if singular else "do"
        return [Word(helper, (tense,), subject.head), *no, *(Word(w, (verb,)) for w in base)]
    first, *rest = past if meaning.past else third if singular else base
    return [*no, Word(first, (verb, tense), subject.head), *(Word(w, (verb,)) for w in rest)]


def phrase(meaning: NounPhrase) -> list[Word]:
    """A noun phrase, with all that hangs on it."""
    key = meaning.key
    words: list[Word] = []
    if isinstance(meaning.determiner, NounPhrase):
        words += [*phrase(meaning.determiner), Word("'s", (f"{key}determiner",))]
    elif isinstance(meaning.determiner, int):
        words += number(meaning.determiner, key)
    for name, adjective in (("before", meaning.before), ("after", meaning.after)):
        if adjective:
            words.append(Word(adjective.english, (f"{key}{name}",), f"{key}noun"))
    words.append(Word(meaning.noun.english[meaning.plural], (f"{key}noun",)))
    if isinstance(meaning.determiner, str):
        article = meaning.determiner
        if article == "this" and meaning.plural:
            article = "these"
        if article == "a" and words[0].text[0] in "aeiou":
            article = "an"
        words.insert(0, Word(article, (f"{key}determiner",)))
    if meaning.place:
        words += place(meaning.place)
    if meaning.relative:
        words += clause(meaning.relative, meaning.agreement())
    return words


def place(meaning: Place) -> list[Word]:
    """A preposition and its noun phrase."""
    return [Word(meaning.preposition, (f"{meaning.key}preposition",)), *phrase(meaning.phrase)]


def number(value: int, key: int) -> list[Word]:
    """2 to 99; the atoms are the tens and the units."""
    tens, units = (f"{key}tens",), (f"{key}units",)
    if value < 20:
        return [Word(SMALL[value], units)]
    words = [Word(TENS[value // 10], tens)]
    return [*words, Word(SMALL[value % 10], units)] if value % 10 else words
