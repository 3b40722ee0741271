"""Data: every chapter.

Small data sets that need no network: points along a curve, and two real ones that come
with scikit-learn.
"""

from attn_course.data.real import DIABETES_FEATURES, Diabetes, Digits, diabetes, digits
from attn_course.data.synthetic import SinePoints, sine_function, sine_points

__all__ = [
    "DIABETES_FEATURES",
    "Diabetes",
    "Digits",
    "SinePoints",
    "diabetes",
    "digits",
    "sine_function",
    "sine_points",
]
