"""Checks of chapter 7's exercises.

Each check hands a student's function small inputs and holds what comes back against an
oracle in float64 and against what the likely mistakes would answer. 7.6 looks further: who
reads and who writes what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attn_course.exercises.framework import (
    Attempt,
    Case,
    Outcome,
    describe,
    exercise,
)
from attn_course.exercises.kernels import blank, device_for, guard, look
from attn_course.exercises.launches import watch
from attn_course.exercises.several import verify_parts
from attn_course.exercises.vision_cases import (
    _EMBED_BACKWARD_CASES,
    _EMBED_CASES,
    _IMAGE_CASES,
    _PATCH_CASES,
    _POOL_CASES,
    _RESIZE_CASES,
    _ROLLOUT_CASES,
    _class_token,
    _embed,
    _embed_backward,
    _mean_patch,
    _patch_tokens,
    _patches,
    _resize,
    _rollout,
)
from attn_course.exercises.vision_mistakes import (
    _CLASS_MISTAKES,
    _DBIAS_MISTAKES,
    _DKERNEL_MISTAKES,
    _EMBED_MISTAKES,
    _IMAGE_MISTAKES,
    _IMAGE_WORDS,
    _MEAN_MISTAKES,
    _NO_CLASS_ROW,
    _OVERLAP,
    _PATCH_MISTAKES,
    _PATCHES_LAST,
    _RESIZE_MISTAKES,
    _ROLLOUT_MISTAKES,
)

__all__ = [
    "check_convolution_is_linear",
    "check_patch_kernel",
    "check_patches",
    "check_pool",
    "check_resize",
    "check_rollout",
]

# 7.1 ---------------------------------------------------------------------------------


@exercise("7.1")
def check_patches(attempt: Attempt, patches: Callable[..., Tensor]) -> None:
    """Check 7.1, patches.

    Args:
        attempt: Given by the decorator.
        patches: (images ``[batch, channels, height, width]``, rows, columns) -> ``[batch, m,
            channels * rows * columns]``.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(patches, case.inputs)
        batch, m, numbers = shape = _patches(**case.inputs).shape
        if isinstance(result, Tensor) and result.shape != shape:
            _, _, height, width = case.inputs["images"].shape
            places = (height - case.inputs["rows"] + 1) * (width - case.inputs["columns"] + 1)
            if places > m and result.numel() == batch * places * numbers:
                attempt.fail(_OVERLAP.format(places, m), patches)
            wanted = _patches(**case.inputs).transpose(1, 2)
            if result.shape == wanted.shape and bool((result == wanted).all()):
                attempt.fail(_PATCHES_LAST.format(list(result.shape)), patches)
        got = attempt.tensor(patches, result, shape, describe(case.inputs))
        return Outcome.of(case, _patches, got)

    attempt.judge_each(patches, _PATCH_CASES, outcome, _PATCH_MISTAKES)


# 7.2 ---------------------------------------------------------------------------------


def _by_weight(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return _embed_backward(x, weight, grad)[0]


def _by_bias(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    return _embed_backward(x, weight, grad)[1]


@exercise("7.2")
def check_convolution_is_linear(
    attempt: Attempt,
    embed: Callable[..., Tensor],
    embed_backward: Callable[..., tuple[Tensor, Tensor]],
) -> None:
    """Check 7.2, a convolution that is a linear map.

    Args:
        attempt: Given by the decorator.
        embed: (x ``[batch, m, channels * rows * columns]``, weight ``[d, channels, rows,
            columns]``, bias ``[d]``) -> ``[batch, m, d]``.
        embed_backward: (x, weight, grad ``[batch, m, d]``) -> dL/dweight, as weight, and
            dL/dbias ``[d]``.
    """
    attempt.verify(embed, _EMBED_CASES, _embed, _EMBED_MISTAKES)
    verify_parts(
        attempt,
        embed_backward,
        _EMBED_BACKWARD_CASES,
        ("dL/dweight", "dL/dbias"),
        (_by_weight, _by_bias),
        (_DKERNEL_MISTAKES, _DBIAS_MISTAKES),
    )


# 7.3 ---------------------------------------------------------------------------------


@exercise("7.3")
def check_resize(attempt: Attempt, resize: Callable[..., Tensor]) -> None:
    """Check 7.3, positions for another grid.

    Args:
        attempt: Given by the decorator.
        resize: (table ``[1 + rows * columns, d]``, old grid, new grid) -> ``[1 + new rows *
            new columns, d]``.
    """

    def outcome(case: Case) -> Outcome:
        result = attempt.call(resize, case.inputs)
        tokens, d = shape = _resize(**case.inputs).shape
        if isinstance(result, Tensor) and result.shape == (tokens - 1, d):
            attempt.fail(_NO_CLASS_ROW.format(tokens - 1), resize)
        got = attempt.tensor(resize, result, shape, describe(case.inputs))
        return Outcome.of(case, _resize, got)

    attempt.judge_each(resize, _RESIZE_CASES, outcome, _RESIZE_MISTAKES)
    attempt.gradient(resize, _RESIZE_CASES[0].inputs, "table")


# 7.4 ---------------------------------------------------------------------------------


@exercise("7.4")
def check_rollout(attempt: Attempt, rollout: Callable[[Tensor], Tensor]) -> None:
    """Check 7.4, what the class token has read.

    Args:
        attempt: Given by the decorator.
        rollout: weights ``[layers, heads, n, n]`` -> ``[n]``.
    """
    attempt.verify(rollout, _ROLLOUT_CASES, _rollout, _ROLLOUT_MISTAKES)


# 7.5 ---------------------------------------------------------------------------------


@exercise("7.5")
def check_pool(attempt: Attempt, pool: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Check 7.5, one vector of many tokens.

    Args:
        attempt: Given by the decorator.
        pool: (tokens ``[batch, 1 + m, d]``, counts ``[batch]``) -> the class token and the
            mean of the real patches, ``[batch, d]`` each.
    """
    verify_parts(
        attempt,
        pool,
        _POOL_CASES,
        ("the class token", "the mean"),
        (_class_token, _mean_patch),
        (_CLASS_MISTAKES, _MEAN_MISTAKES),
    )


# 7.6 ---------------------------------------------------------------------------------


def _tile_owner(dim: int, block_m: int, block_n: int) -> Callable[[int], tuple[int, int, int]]:
    return lambda place: (place // dim // block_m, place % dim // block_n, 0)


@exercise("7.6")
def check_patch_kernel(attempt: Attempt, kernel: Any) -> None:
    """Check 7.6, an embedding of rectangular patches.

    Args:
        attempt: Given by the decorator.
        kernel: A ``@triton.jit`` function (image_ptr, weight_ptr, bias_ptr, class_ptr,
            position_ptr, output_ptr, GRID_H, GRID_W, CHANNELS, PH, PW, DIM, BLOCK_M, BLOCK_N,
            BLOCK_K); program (t, c) writes the tile of BLOCK_M tokens and BLOCK_N columns.
    """
    device = device_for(attempt, kernel)

    def outcome(case: Case) -> Outcome:
        inputs = case.inputs
        names = ("image", "weight", "bias", "class_token", "position")
        given = [guard(inputs[name], device) for name in names]
        (channels, height, width), (tokens, dim) = inputs["image"].shape, inputs["position"].shape
        (ph, pw), (block_m, block_n, block_k) = inputs["patch"], inputs["blocks"]
        grid_h, grid_w = height // ph, width // pw
        output = blank([tokens, dim], device)
        with attempt.watching(kernel, inputs), watch() as accesses:
            kernel[(-(-tokens // block_m), -(-dim // block_n))](
                *(guarded.tensor for guarded in given),
                output.tensor, grid_h, grid_w, channels, ph, pw, dim, block_m, block_n, block_k,
            )  # fmt: skip
        got = look(
            attempt,
            kernel,
            accesses,
            given,
            output,
            owner=_tile_owner(dim, block_m, block_n),
            words=_IMAGE_WORDS,
            seen=f"Seen with {case.name}: {grid_h} x {grid_w} patches of {ph} x {pw} pixels, "
            f"CHANNELS = {channels}, DIM = {dim}, BLOCK_M = {block_m}, BLOCK_N = {block_n}, "
            f"BLOCK_K = {block_k}.",
        )
        return Outcome.of(case, _patch_tokens, got)

    attempt.judge_each(kernel, _IMAGE_CASES, outcome, _IMAGE_MISTAKES)
