"""Training: every chapter.

The loop shows its progress, and a seed makes its runs repeatable.
"""

from attn_course.training.fit import fit, seed_everything
from attn_course.training.history import History

__all__ = ["History", "fit", "seed_everything"]
