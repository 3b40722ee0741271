"""French words for a meaning."""

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
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze "
    "seize".split()
)
TENS = "_ dix vingt trente quarante cinquante soixante".split()
#: Before a vowel or a mute h.
ELIDED = {"le": "l'", "la": "l'", "ne": "n'", "de": "d'", "je": "j'", "que": "qu'", "ce": "cet"}
#: The h of "hibou" keeps words apart, and so do these two numbers.
ASPIRATED = {"hibou", "hiboux", "huit", "onze"}
CONTRACTED = {("de", "le"): "du", ("de", "les"): "des"}


def sentence(meaning: Sentence) -> list[Word]:
    """The sentence, word by word, with its elisions and contractions."""
    words: list[Word] = []
    for number, part in enumerate(meaning.clauses):
        if number:
            texts = CONJUNCTIONS[meaning.conjunction][0].split()
            words += [Word(text, (f"{meaning.key}conjunction",)) for text in texts]
        words += clause(part, None)
    if meaning.date is not None:
        comma = [Word(",", (f"{meaning.key}comma",))]
        day = date(meaning.date)
        words = [*day, *comma, *words] if meaning.date_first else [*words, *day]
    return _joined(words)


def starts_with_vowel(word: str) -> bool:
    """Whether the word sounds as if it started with a vowel.

    Example:
        >>> [starts_with_vowel(word) for word in ("homme", "hibou", "œuf", "chat")]
        [True, False, True, False]
    """
    return word[0] in "aeiouhâéèêœ" and word not in ASPIRATED


def _joined(words: list[Word]) -> list[Word]:
    """``de le chat`` -> ``du chat``, ``la école`` -> ``l' école``; the last words come first."""
    done: list[Word] = []  # in reverse
    for word in reversed(words):
        if done and word.text in ELIDED and starts_with_vowel(done[-1].text):
            word = word._replace(text=ELIDED[word.text])
        elif done and (word.text, done[-1].text) in CONTRACTED:
            article = done.pop()
            atoms = word.atoms + article.atoms
            word = Word(CONTRACTED[word.text, article.text], atoms, article.head)
        done.append(word)
    return done[::-1]


def date(meaning: Date) -> list[Word]:
    """``lundi``, ``en mai``, ``le lundi trois mai``."""
    key = meaning.key
    on, weekday, month = (f"{key}on",), (f"{key}weekday",), (f"{key}month",)
    if meaning.weekday is None:
        assert meaning.month is not None
        return [Word("en", on), Word(MONTHS[meaning.month][1], month)]
    words = [Word(WEEKDAYS[meaning.weekday][1], weekday)]
    if meaning.day is None or meaning.month is None:
        return words
    day = "premier" if meaning.day == 1 else SMALL[meaning.day]
    end = [Word(day, (f"{key}day",)), Word(MONTHS[meaning.month][1], month)]
    return [Word("le", (f"{key}the",)), *words, *end]


def clause(meaning: Clause, antecedent: Agreement | None) -> list[Word]:
    """A main clause, or a relative one about ``antecedent``."""
    words: list[Word] = []
    if meaning.gap:
        that = "qui" if meaning.gap == "subject" else "que"
        words.append(Word(that, (f"{meaning.key}that",)))
    if meaning.gap != "subject":
        words += _subject(meaning)
    before = antecedent if meaning.gap == "object" else None
    words += _verb(meaning, meaning.agreement(antecedent), before)
    for number, thing in enumerate(meaning.objects):
        if number:
            words.append(Word("et", (f"{thing.key}and",)))
        words += phrase(thing, negated=bool(meaning.negation))
    return words + (place(meaning.place) if meaning.place else [])


def _subject(meaning: Clause) -> list[Word]:
    if isinstance(meaning.subject, str):
        text = {"i": "je", "he": "il", "she": "elle"}[meaning.subject]
        return [Word(text, (f"{meaning.key}subject",))]
    first, *others = meaning.subject
    words = phrase(first)
    for other in others:
        words += [Word("et", (f"{other.key}and",)), *phrase(other)]
    return words


def _verb(meaning: Clause, subject: Agreement, before: Agreement | None) -> list[Word]:
    """The verb; ``before`` is its object, if that came first: a participle agrees with it."""
    verb, tense = f"{meaning.key}verb", f"{meaning.key}tense"
    rest: list[Word] = []
    # Which form: first person, third person, third person plural.
    form = 2 if subject.plural else 0 if subject.person == 1 else 1
    if isinstance(meaning.verb, Adjective):
        finite = (("", "était", "étaient") if meaning.past else ("", "est", "sont"))[form]
        atoms: tuple[str, ...] = (verb, tense)
        text = meaning.verb.french[2 * subject.plural + subject.french_feminine]
        rest.append(Word(text, (f"{meaning.key}adjective",), subject.head))
    elif meaning.past:
        finite, atoms = ("ai", "a", "ont")[form], (tense,)
        participle = meaning.verb.participle
        if before is not None:
            participle += "e" * before.french_feminine + "s" * before.plural
        rest.append(Word(participle, (verb,), before.head if before else None))
    else:
        finite, atoms = meaning.verb.french[form], (verb, tense)
    words = [Word(finite, atoms, subject.head)]
    if meaning.negation:
        no = (f"{meaning.key}not",)
        second = "jamais" if meaning.negation == "never" else "pas"
        words = [Word("ne", no), *words, Word(second, no)]
    return words + rest


def phrase(meaning: NounPhrase, *, negated: bool = False) -> list[Word]:
    """A noun phrase; ``un`` and ``une`` become ``de`` as the object of a negated verb."""
    key, plural, feminine = meaning.key, meaning.plural, meaning.noun.french_feminine
    head = f"{key}noun"
    owner = meaning.determiner if isinstance(meaning.determiner, NounPhrase) else None
    words: list[Word] = []
    if isinstance(meaning.determiner, int):
        words += number(meaning.determiner, key, feminine)
    else:
        if meaning.determiner == "a":
            text = "de" if negated else ("un", "une")[feminine]
        elif meaning.determiner == "this":
            text = "ces" if plural else ("ce", "cette")[feminine]
        else:
            text = "les" if plural else ("le", "la")[feminine]
        words.append(Word(text, (f"{key}determiner",), head))
    first, *others = meaning.noun.french[plural].split("_")
    if meaning.before:
        text = meaning.before.french[2 * plural + feminine]
        if not plural and not feminine and starts_with_vowel(first):
            text = meaning.before.liaison
        words.append(Word(text, (f"{key}before",), head))
    words.append(Word(first, (head,)))
    # No head for "de terre": its atom alone says what it belongs to.
    words += [Word(other, (head,)) for other in others]
    if meaning.after:
        text = meaning.after.french[2 * plural + feminine]
        words.append(Word(text, (f"{key}after",), head))
    if owner:
        words += [Word("de", (f"{key}determiner",)), *phrase(owner)]
    if meaning.place:
        words += place(meaning.place)
    if meaning.relative:
        words += clause(meaning.relative, meaning.agreement())
    return words


def place(meaning: Place) -> list[Word]:
    """A preposition and its noun phrase."""
    texts = PREPOSITIONS[meaning.preposition][0].split()
    words = [Word(text, (f"{meaning.key}preposition",)) for text in texts]
    return words + phrase(meaning.phrase)


def number(value: int, key: int, feminine: bool) -> list[Word]:
    """2 to 99, in the traditional spelling; a hyphen is a word of its own.

    Example:
        >>> [word.text for word in number(92, 0, feminine=False)]
        ['quatre', '-', 'vingt', '-', 'douze']
        >>> [word.text for word in number(21, 0, feminine=True)]
        ['vingt', 'et', 'une']
    """
    tens, units, both = (f"{key}tens",), (f"{key}units",), (f"{key}tens", f"{key}units")
    if value <= 16:
        return [Word(SMALL[value], units)]
    if value < 20:
        return [Word("dix", units), Word("-", units), Word(SMALL[value - 10], units)]
    base = value // 10 * 10
    if base in (70, 90):  # soixante-dix, quatre-vingt-dix: counted on from 60 and 80
        base -= 10
    left = value - base
    if base == 80:
        twenty = "vingts" if left == 0 else "vingt"
        words = [Word("quatre", tens), Word("-", tens), Word(twenty, tens)]
    else:
        words = [Word(TENS[base // 10], tens)]
    if left == 0:
        return words
    # From 10 on the last word tells both: "douze" is the 12 of 80 + 12, ninety two.
    last = units if left < 10 else tens if left == 10 else both
    link = "et" if left in (1, 11) and base != 80 else "-"
    words.append(Word(link, last))
    if left == 1:
        return [*words, Word(("un", "une")[feminine], last, f"{key}noun")]
    if left <= 16:
        return [*words, Word(SMALL[left], last)]
    return [*words, Word("dix", tens), Word("-", units), Word(SMALL[left - 10], units)]
