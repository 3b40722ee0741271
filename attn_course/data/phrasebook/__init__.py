"""A small grammar: English sentences with one French and one Spanish translation each.

``lexicon`` has the words, ``meaning`` what can be said, ``sample`` draws it, and
``english``, ``french`` and ``spanish`` say it.
"""

from attn_course.data.phrasebook.build import LENGTH_BINS, SIGNPOST, SLICES, grammar

__all__ = ["LENGTH_BINS", "SIGNPOST", "SLICES", "grammar"]
