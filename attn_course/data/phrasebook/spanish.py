"""Spanish words for a meaning."""

from __future__ import annotations

from attn_course.data.phrasebook.lexicon import (
    CONJUNCTIONS,
    MONTHS,
    PREPOSITIONS,
    WEEKDAYS,
    Adjective,
)
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
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez once doce trece catorce quince "
    "dieciséis diecisiete dieciocho diecinueve veinte veintiuno veintidós veintitrés "
    "veinticuatro veinticinco veintiséis veintisiete veintiocho veintinueve".split()
)
TENS = "_ _ _ treinta cuarenta cincuenta sesenta setenta ochenta noventa".split()
CONTRACTED = {("a", "el"): "al", ("de", "el"): "del"}


def sentence(meaning: Sentence) -> list[Word]:
    """The sentence, word by word, with its contractions."""
    words: list[Word] = []
    for number, part in enumerate(meaning.clauses):
        if number:
            text = CONJUNCTIONS[meaning.conjunction][1]
            words.append(Word(text, (f"{meaning.key}conjunction",)))
        words += clause(part, None)
    if meaning.date is not None:
        comma = [Word(",", (f"{meaning.key}comma",))]
        day = date(meaning.date)
        words = [*day, *comma, *words] if meaning.date_first else [*words, *day]
    return _joined(words)


def _joined(words: list[Word]) -> list[Word]:
    """``de el gato`` -> ``del gato``."""
    done: list[Word] = []
    for word in words:
        if done and (done[-1].text, word.text) in CONTRACTED:
            first = done.pop()
            text = CONTRACTED[first.text, word.text]
            word = Word(text, first.atoms + word.atoms, word.head)
        done.append(word)
    return done


def date(meaning: Date) -> list[Word]:
    """``el lunes``, ``en mayo``, ``el lunes tres de mayo``."""
    key = meaning.key
    on, weekday, month = (f"{key}on",), (f"{key}weekday",), (f"{key}month",)
    if meaning.weekday is None:
        assert meaning.month is not None
        return [Word("en", on), Word(MONTHS[meaning.month][2], month)]
    words = [Word("el", (*on, f"{key}the")), Word(WEEKDAYS[meaning.weekday][2], weekday)]
    if meaning.day is None or meaning.month is None:
        return words
    words.append(Word("primero" if meaning.day == 1 else SMALL[meaning.day], (f"{key}day",)))
    return [*words, Word("de", (f"{key}of",)), Word(MONTHS[meaning.month][2], month)]


def clause(meaning: Clause, antecedent: Agreement | None) -> list[Word]:
    """A main clause, or a relative one about ``antecedent``."""
    words: list[Word] = []
    if meaning.gap:
        words.append(Word("que", (f"{meaning.key}that",)))
    if meaning.gap != "subject":
        words += _subject(meaning)
    words += _verb(meaning, meaning.agreement(antecedent))
    for number, thing in enumerate(meaning.objects):
        if number:
            words.append(Word("y", (f"{thing.key}and",)))
        if thing.noun.animate:  # people and animals take "a" as objects: no English word does that
            words.append(Word("a", (f"{thing.key}object",)))
        words += phrase(thing)
    return words + (place(meaning.place) if meaning.place else [])


def _subject(meaning: Clause) -> list[Word]:
    if isinstance(meaning.subject, str):
        if meaning.subject == "i":  # the verb's ending says it
            return []
        text = {"he": "él", "she": "ella"}[meaning.subject]
        return [Word(text, (f"{meaning.key}subject",))]
    first, *others = meaning.subject
    words = phrase(first)
    for other in others:
        words += [Word("y", (f"{other.key}and",)), *phrase(other)]
    return words


def _verb(meaning: Clause, subject: Agreement) -> list[Word]:
    # Which form: first person, third person, third person plural.
    form = 2 if subject.plural else 0 if subject.person == 1 else 1
    atoms: tuple[str, ...] = (f"{meaning.key}verb", f"{meaning.key}tense")
    rest: list[Word] = []
    if isinstance(meaning.verb, Adjective):
        if meaning.verb.estar:
            forms = ("", "estaba", "estaban") if meaning.past else ("", "está", "están")
        else:
            forms = ("", "era", "eran") if meaning.past else ("", "es", "son")
        text = meaning.verb.spanish[2 * subject.plural + subject.spanish_feminine]
        rest.append(Word(text, (f"{meaning.key}adjective",), subject.head))
    else:
        forms = meaning.verb.spanish_past if meaning.past else meaning.verb.spanish
        if form == 0:
            atoms += (f"{meaning.key}subject",)
    words = [Word(forms[form], atoms, subject.head), *rest]
    if meaning.negation:
        text = "nunca" if meaning.negation == "never" else "no"
        words.insert(0, Word(text, (f"{meaning.key}not",)))
    return words


def phrase(meaning: NounPhrase) -> list[Word]:
    """A noun phrase; adjectives follow the noun, in the reverse of their English order."""
    key, plural, feminine = meaning.key, meaning.plural, meaning.noun.spanish_feminine
    head = f"{key}noun"
    form = 2 * plural + feminine
    owner = meaning.determiner if isinstance(meaning.determiner, NounPhrase) else None
    words: list[Word] = []
    if isinstance(meaning.determiner, int):
        words += number(meaning.determiner, key, feminine)
    else:
        if meaning.determiner == "a":
            text = ("un", "una")[feminine]
        elif meaning.determiner == "this":
            text = ("este", "esta", "estos", "estas")[form]
        else:
            text = ("el", "la", "los", "las")[form]
        words.append(Word(text, (f"{key}determiner",), head))
    words.append(Word(meaning.noun.spanish[plural], (head,)))
    for name, adjective in (("after", meaning.after), ("before", meaning.before)):
        if adjective:
            words.append(Word(adjective.spanish[form], (f"{key}{name}",), head))
    if owner:
        words += [Word("de", (f"{key}determiner",)), *phrase(owner)]
    if meaning.place:
        words += place(meaning.place)
    if meaning.relative:
        words += clause(meaning.relative, meaning.agreement())
    return words


def place(meaning: Place) -> list[Word]:
    """A preposition and its noun phrase."""
    texts = PREPOSITIONS[meaning.preposition][1].split()
    words = [Word(text, (f"{meaning.key}preposition",)) for text in texts]
    return words + phrase(meaning.phrase)


def number(value: int, key: int, feminine: bool) -> list[Word]:
    """2 to 99.

    Example:
        >>> [word.text for word in number(92, 0, feminine=False)]
        ['noventa', 'y', 'dos']
        >>> [word.text for word in number(21, 0, feminine=False)]
        ['veintiún']
        >>> [word.text for word in number(31, 0, feminine=True)]
        ['treinta', 'y', 'una']
    """
    tens, units, head = (f"{key}tens",), (f"{key}units",), f"{key}noun"
    if value == 21:
        return [Word(("veintiún", "veintiuna")[feminine], tens + units, head)]
    if value < 30:
        return [Word(SMALL[value], units if value < 20 else tens + units)]
    words = [Word(TENS[value // 10], tens)]
    if value % 10 == 0:
        return words
    words.append(Word("y", units))
    if value % 10 == 1:
        return [*words, Word(("un", "una")[feminine], units, head)]
    return [*words, Word(SMALL[value % 10], units)]
