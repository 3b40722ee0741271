"""What a sentence says, whatever the language: the grammar's middle, between its languages.

Each part has a ``key``. The languages mark each word with the atoms of meaning that it
expresses, such as ``"3noun"``, the noun of part 3; words of two languages that share an
atom translate each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from attn_course.data.phrasebook.lexicon import Adjective, Noun, Verb


class Word(NamedTuple):
    """A word in a sentence.

    Attributes:
        text: The word.
        atoms: Which atoms of the meaning it expresses.
        head: The atom of the noun that it agrees with, if it agrees with one.
    """

    text: str
    atoms: tuple[str, ...]
    head: str | None = None


class Agreement(NamedTuple):
    """What others have to agree with: a subject, or the noun that a relative clause describes."""

    person: int
    plural: bool
    french_feminine: bool
    spanish_feminine: bool
    head: str | None


@dataclass(frozen=True, slots=True)
class NounPhrase:
    """``the small black cat in the garden``; the determiner may be a number or an owner."""

    key: int
    determiner: str | int | NounPhrase
    noun: Noun
    plural: bool
    before: Adjective | None = None
    after: Adjective | None = None
    place: Place | None = None
    relative: Clause | None = None

    def agreement(self) -> Agreement:
        """What agrees with this noun has to know."""
        noun = self.noun
        head = f"{self.key}noun"
        return Agreement(3, self.plural, noun.french_feminine, noun.spanish_feminine, head)


@dataclass(frozen=True, slots=True)
class Place:
    """``near the school``, ``with the hat``."""

    key: int
    preposition: str
    phrase: NounPhrase


@dataclass(frozen=True, slots=True)
class Clause:
    """A subject, a verb or a predicate adjective, and what follows it.

    The subject is one or two noun phrases, or one of ``i``, ``he``, ``she``. In a relative
    clause ``gap`` is ``"subject"`` or ``"object"``, and that part is left out.
    """

    key: int
    subject: str | tuple[NounPhrase, ...]
    verb: Verb | Adjective
    past: bool
    negation: str = ""
    objects: tuple[NounPhrase, ...] = ()
    place: Place | None = None
    gap: str = ""

    def agreement(self, antecedent: Agreement | None) -> Agreement:
        """What the verb agrees with: the subject, or what the relative clause describes."""
        if self.gap == "subject":
            assert antecedent is not None
            return antecedent
        if isinstance(self.subject, str):
            feminine = self.subject == "she"
            return Agreement(1 if self.subject == "i" else 3, False, feminine, feminine, None)
        parts = [phrase.agreement() for phrase in self.subject]
        if len(parts) == 1:
            return parts[0]
        # Two together are plural, and feminine only if both are.
        french = all(part.french_feminine for part in parts)
        spanish = all(part.spanish_feminine for part in parts)
        return Agreement(3, True, french, spanish, parts[-1].head)


@dataclass(frozen=True, slots=True)
class Date:
    """``on monday the third of may``: all three parts, or the weekday or month alone."""

    key: int
    weekday: int | None
    day: int | None
    month: int | None


@dataclass(frozen=True, slots=True)
class Sentence:
    """One or two clauses, and perhaps a date, first or last."""

    key: int
    clauses: tuple[Clause, ...]
    conjunction: str = ""
    date: Date | None = None
    date_first: bool = False
