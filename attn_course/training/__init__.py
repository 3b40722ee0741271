"""Training: every chapter.

One small loop, ``fit``, that shows its progress, and the seed that makes its runs
repeatable.
"""

from attn_course.training.fit import fit, seed_everything
from attn_course.training.history import History

__all__ = ["History", "fit", "seed_everything"]
