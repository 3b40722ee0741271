"""Choosing what to say: sentences of 3 to 20 English words, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from attn_course.data.phrasebook.lexicon import Adjective, Noun, Verb, after, before, nouns, verbs
from attn_course.data.phrasebook.meaning import Clause, Date, NounPhrase, Place, Sentence

ANIMATE = [noun for noun in nouns if noun.animate]
PLACES = [noun for noun in nouns if noun.kind == "place"]
CARRIED = [noun for noun in nouns if noun.kind == "carried"]
TRANSITIVE = [verb for verb in verbs if verb.kinds]
INTRANSITIVE = [verb for verb in verbs if not verb.kinds]
OBJECTS = {verb: [noun for noun in nouns if noun.kind in verb.kinds] for verb in TRANSITIVE}
#: Verbs whose subject and object may change places.
SYMMETRIC = [verb for verb in TRANSITIVE if {"person", "animal"} <= verb.kinds]


def _by_kind(table: list[Adjective]) -> dict[str, list[Adjective]]:
    kinds = {noun.kind for noun in nouns}
    return {kind: [a for a in table if kind in a.kinds] for kind in kinds}


BEFORE, AFTER = _by_kind(before), _by_kind(after)


class Sampler:
    """Draws meanings, one after the other.

    Iterating gives groups that belong together: a sentence, or a reversible one and the one
    with subject and object exchanged.
    """

    def __init__(self, seed: int) -> None:
        """Start from ``seed``."""
        self.random = Random(seed)
        self.keys = 0

    def __iter__(self) -> Iterator[list[Sentence]]:
        """Without end."""
        while True:
            # Small numbers keep the atoms of all sentences alike.
            self.keys = 0
            if self.chance(0.12):
                yield self.reversible()
            else:
                yield [self.sentence()]

    def key(self) -> int:
        """A number for the next part."""
        self.keys += 1
        return self.keys

    def chance(self, probability: float) -> bool:
        """Yes with this probability."""
        return self.random.random() < probability

    def sentence(self) -> Sentence:
        """One clause, or two with a conjunction; in the past perhaps with a date."""
        past = self.chance(0.5)
        clauses = [self.clause(past)]
        conjunction = ""
        if self.chance(0.3):
            conjunction = self.random.choice(("and", "but", "when", "because"))
            clauses.append(self.clause(past, short=True))
        date = self.date() if past and self.chance(0.35) else None
        return Sentence(self.key(), tuple(clauses), conjunction, date, self.chance(0.5))

    def reversible(self) -> list[Sentence]:
        """Who does it to whom, both ways round."""
        first = self.phrase(self.random.choice(ANIMATE))
        second = self.phrase(self.random.choice(ANIMATE))
        clause = Clause(
            self.key(),
            (first,),
            self.random.choice(SYMMETRIC),
            self.chance(0.5),
            self.negation(),
            (second,),
        )
        date = self.date() if clause.past and self.chance(0.2) else None
        swapped = replace(clause, subject=(second,), objects=(first,))
        order = self.chance(0.5)
        key = self.key()
        return [Sentence(key, (c,), "", date, order) for c in (clause, swapped)]

    def clause(self, past: bool, *, short: bool = False) -> Clause:
        """A main clause; a short one carries less."""
        subject = self.subject(past, short)
        negation = self.negation()
        person = animate = True
        if not isinstance(subject, str):
            person = all(part.noun.kind == "person" for part in subject)
            animate = all(part.noun.animate for part in subject)
            # Apples do nothing, but they may be red.
            if len(subject) == 1 and (not animate or self.chance(0.3)):
                return Clause(self.key(), subject, self.predicate(subject), past, negation)
        place = self.place() if self.chance(0.15 if short else 0.3) else None
        if self.chance(0.35 if short else 0.25):
            verb = self.random.choice(INTRANSITIVE)
            return Clause(self.key(), subject, verb, past, negation, (), place)
        verb = self.verb(person)
        objects = self.objects(verb, past, negation, short)
        return Clause(self.key(), subject, verb, past, negation, objects, place)

    def subject(self, past: bool, short: bool) -> str | tuple[NounPhrase, ...]:
        """A pronoun, one noun phrase or two."""
        if self.chance(0.1):
            return self.random.choice(("i", "he", "she"))
        if self.chance(0.1):
            return (
                self.phrase(self.random.choice(ANIMATE)),
                self.phrase(self.random.choice(ANIMATE)),
            )
        noun = self.random.choice(ANIMATE if self.chance(0.75) else nouns)
        return (self.phrase(noun) if short else self.extended(noun, past),)

    def objects(self, verb: Verb, past: bool, negation: str, short: bool) -> tuple[NounPhrase, ...]:
        """One noun phrase; seldom two, and never after a negation."""
        noun = self.random.choice(OBJECTS[verb])
        if not negation and self.chance(0.1):
            return (self.phrase(noun), self.phrase(self.random.choice(OBJECTS[verb])))
        if short or negation or self.chance(0.6):
            return (self.phrase(noun),)
        return (self.extended(noun, past),)

    def verb(self, person: bool) -> Verb:
        """A verb for this subject: animals neither buy nor wash."""
        return self.random.choice([v for v in TRANSITIVE if person or not v.by_person])

    def predicate(self, subject: tuple[NounPhrase, ...]) -> Adjective:
        """An adjective for ``is``, other than those that the subject has already."""
        kinds = [part.noun.kind for part in subject]
        used = {a for part in subject for a in (part.before, part.after)}
        fitting = [a for a in BEFORE[kinds[0]] + AFTER[kinds[0]] if kinds[-1] in a.kinds]
        return self.random.choice([a for a in fitting if a not in used])

    def negation(self) -> str:
        """Mostly none."""
        return self.random.choice(("not", "not", "never")) if self.chance(0.25) else ""

    def phrase(self, noun: Noun) -> NounPhrase:
        """A determiner, a noun and up to two adjectives; or an owner and a noun."""
        key = self.key()
        before = self.random.choice(BEFORE[noun.kind]) if self.chance(0.3) else None
        after = self.random.choice(AFTER[noun.kind]) if self.chance(0.35) else None
        if noun.kind == "place":
            return NounPhrase(key, self.random.choice(("the", "the", "a")), noun, False, before)
        draw = self.random.random()
        if draw < 0.05:
            owner = self.random.choice([n for n in ANIMATE if n.kind == "person"])
            return NounPhrase(key, self.plain(owner), noun, self.chance(0.4), None, after)
        if draw < 0.25:
            value = self.random.randint(2, 12 if self.chance(0.5) else 99)
            return NounPhrase(key, value, noun, True, before, after)
        if draw < 0.4:
            return NounPhrase(key, "this", noun, self.chance(0.5), before, after)
        if draw < 0.6:
            return NounPhrase(key, "a", noun, False, before, after)
        return NounPhrase(key, "the", noun, self.chance(0.4), before, after)

    def plain(self, noun: Noun, *, plural: bool = False) -> NounPhrase:
        """``the king`` or ``the kings``."""
        return NounPhrase(self.key(), "the", noun, plural)

    def extended(self, noun: Noun, past: bool) -> NounPhrase:
        """A noun phrase, perhaps with a place, something carried or a relative clause."""
        phrase = self.phrase(noun)
        if noun.kind == "place" or isinstance(phrase.determiner, NounPhrase):
            return phrase
        draw = self.random.random()
        if draw < 0.15:
            return replace(phrase, place=self.place())
        if draw < 0.25 and noun.kind == "person":
            carried = self.phrase(self.random.choice(CARRIED))
            if not isinstance(carried.determiner, NounPhrase):
                return replace(phrase, place=Place(self.key(), "with", carried))
        if draw < 0.55:
            return replace(phrase, relative=self.relative(noun, past))
        return phrase

    def place(self) -> Place:
        """Where."""
        preposition = self.random.choice(("in", "in", "near", "behind"))
        return Place(self.key(), preposition, self.phrase(self.random.choice(PLACES)))

    def relative(self, noun: Noun, past: bool) -> Clause:
        """A relative clause: who did something, or to what something was done."""
        if noun.animate:
            past = past and self.chance(0.8)
            if self.chance(0.5):
                verb = self.random.choice(INTRANSITIVE)
                return Clause(self.key(), "", verb, past, "", (), None, "subject")
            verb = self.verb(noun.kind == "person")
            thing = self.random.choice(OBJECTS[verb])
            objects = (self.plain(thing, plural=self.chance(0.4)),)
            return Clause(self.key(), "", verb, past, "", objects, None, "subject")
        verb = self.random.choice([v for v in TRANSITIVE if noun.kind in v.kinds])
        doers = [n for n in ANIMATE if n.kind == "person" or not verb.by_person]
        doer = self.plain(self.random.choice(doers), plural=self.chance(0.4))
        # In the present: a French participle would agree with the object before it, which is
        # too rare here to be learned from examples.
        return Clause(self.key(), (doer,), verb, False, "", (), None, "object")

    def date(self) -> Date:
        """A full date, a weekday or a month."""
        weekday, day = self.random.randrange(7), self.random.randint(1, 12)
        month = self.random.randrange(12)
        draw = self.random.random()
        if draw < 0.6:
            return Date(self.key(), weekday, day, month)
        if draw < 0.8:
            return Date(self.key(), weekday, None, None)
        return Date(self.key(), None, None, month)
