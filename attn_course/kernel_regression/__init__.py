"""Kernel regression: chapter 1.

The Nadaraya-Watson estimator, which is attention with weights that a fixed
distance decides.
"""

from attn_course.kernel_regression.layer import KernelClassifier, KernelRegression
from attn_course.kernel_regression.ops import kernel_regression, leave_one_out
from attn_course.kernel_regression.reference import KERNELS, kernel_value

__all__ = [
    "KERNELS",
    "KernelClassifier",
    "KernelRegression",
    "kernel_regression",
    "kernel_value",
    "leave_one_out",
]
