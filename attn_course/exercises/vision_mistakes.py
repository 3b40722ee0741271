"""Chapter 7's exercises: the likely mistakes, and what is said of each.

A mistake is the formula that it computes, and the message that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises.framework import Mistake
from attn_course.exercises.kernels import Words
from attn_course.exercises.vision_cases import (
    _class_token,
    _embed,
    _embed_backward,
    _mean_patch,
    _patch_tokens,
    _patches,
    _resize,
    _rollout,
)

# 7.1 ---------------------------------------------------------------------------------


def _in_order(*axes: str) -> tuple[Callable[..., Tensor], ...]:
    """The six axes in other orders: image, channel, patch down, row, patch across, column."""

    def of(order: str) -> Callable[..., Tensor]:
        def answer(images: Tensor, rows: int, columns: int) -> Tensor:
            batch, channels, height, width = images.shape
            x = images.reshape(batch, channels, height // rows, rows, width // columns, columns)
            x = x.permute(*("bchrwk".index(axis) for axis in order))
            return x.reshape(batch, -1, channels * rows * columns)

        return answer

    return tuple(of(order) for order in axes)


def _apart(order: str) -> Callable[..., Tensor]:
    """Which patch and where in it exchanged: a patch takes pixels that lie far apart."""

    def answer(images: Tensor, rows: int, columns: int) -> Tensor:
        batch, channels, height, width = images.shape
        x = images.reshape(batch, channels, rows, height // rows, columns, width // columns)
        x = x.permute(*("bcrhkw".index(axis) for axis in order))
        return x.reshape(batch, -1, channels * rows * columns)

    return answer


def _patches_last(images: Tensor, rows: int, columns: int) -> Tensor:
    """``F.unfold``'s answer, its numbers dealt out anew."""
    x = _patches(images, rows, columns)
    return x.transpose(1, 2).reshape(x.shape)


_PATCH_MISTAKES = (
    Mistake(
        "the patches are numbered down the columns of the grid. Of `h` and `w`, which counts "
        "faster when one reads row by row?",
        _in_order("bwhcrk"),
    ),
    Mistake(
        "the pixels of a patch are numbered down its columns. In which order does one read a patch "
        "row by row, and what comes last in your permutation?",
        _in_order("bhwckr"),
    ),
    Mistake(
        "rows and columns are exchanged throughout: this is the transposed image. Squares would "
        "have hidden it from the shapes. Which axis of `images` is the height?",
        (
            *_in_order("bwhckr"),
            lambda images, rows, columns: _patches(images.transpose(2, 3), rows, columns),
            lambda images, rows, columns: _patches(images.transpose(2, 3), columns, rows),
        ),
    ),
    Mistake(
        "`rows` and `columns` have changed places: which of the two is the height of a patch?",
        (lambda images, rows, columns: _patches(images, columns, rows),),
    ),
    Mistake(
        "within a patch the channels come last, pixel by pixel: many image files do so, and "
        "convolutions do not. What is to come first within a patch?",
        _in_order("bhwrkc", "bhwkrc"),
    ),
    Mistake(
        "within a patch the channels stand between rows and columns. What is to come first, all of "
        "it, and then the next?",
        _in_order("bhwrck", "bhwkcr"),
    ),
    Mistake(
        "both orders are wrong, that of the patches and that of the numbers within one. Take them "
        "one at a time: which two axes say *which patch*?",
        _in_order("bwhrkc", "bwhkrc", "bwhrck", "bwhkcr"),
    ),
    Mistake(
        "the numbers come out in the order in which they lie in memory: this cuts the image into "
        "strips, and the first patch is the beginning of the first row. A `reshape` never moves "
        "a number: what does?",
        (
            *_in_order("bchrwk"),
            lambda images, rows, columns: images.permute(0, 2, 3, 1).reshape(
                len(images), -1, images.shape[1] * rows * columns
            ),
            lambda images, rows, columns: (
                images.flatten(2).unflatten(2, (-1, rows * columns)).transpose(1, 2).flatten(2)
            ),
        ),
    ),
    Mistake(
        "only some axes have moved: what is called a patch here is made of pieces of several rows "
        "of patches, or of one long row. Which two axes number the patches, and do they stand "
        "beside each other, before all others but the batch?",
        _in_order("bhrwck", "bhcrwk", "bhcwrk", "bwkchr", "bcwhrk", "bchwkr"),
    ),
    Mistake(
        "the channels are cut apart: what is called a patch holds pixels of one channel only, of "
        "several places. (Two `unfold` leave the axes of a patch at the end, and the channels "
        "where they were.) Which axes belong to one patch?",
        _in_order("bchwrk"),
    ),
    Mistake(
        "images are mixed: a patch of one is found in the place of another's. Which axis has to "
        "come first, and stay there?",
        _in_order("hwbcrk", "hbwcrk", "cbhwrk", "hwcrkb", "chwrkb"),
    ),
    Mistake(
        "a patch takes pixels that lie apart, all over the image, rather than neighbours: the axis "
        "of the height was split the other way round. Splitting an axis by `reshape`, which of the "
        "two parts counts faster?",
        (_apart("bhwcrk"), _apart("brkchw"), _apart("bkrchw"), _apart("bwhcrk")),
    ),
    Mistake(
        "patches and the numbers within one have changed places: `F.unfold` puts the patches last, "
        "and `reshape` moves no numbers. What exchanges two axes?",
        (_patches_last,),
    ),
)

_OVERLAP = (
    "there are {} patches of each image, and {} were expected: they overlap. By how many pixels "
    "does the window move from one patch to the next? (`F.unfold` has a stride.)"
)
_PATCHES_LAST = (
    "it returned shape {}: the patches come last, as from `F.unfold`. One token a row is asked "
    "for: which two axes are to be exchanged?"
)


# 7.2 ---------------------------------------------------------------------------------

# The last three axes of a weight, in orders that are not its own.
_CHANNELS_LAST = ((0, 2, 3, 1), (0, 2, 1, 3), (0, 3, 2, 1), (0, 3, 1, 2))
_COLUMNS_FIRST = ((0, 1, 3, 2),)


def _embedded(
    matrix: Callable[[Tensor], Tensor], bias: Callable[[Tensor], Tensor] = lambda bias: bias
) -> Callable[..., Tensor]:
    """Another matrix ``[K, d]`` made of the weight; something else made of the bias."""

    def answer(x: Tensor, weight: Tensor, **given: Tensor) -> Tensor:
        return x @ matrix(weight) + bias(given["bias"])

    return answer


def _flat(weight: Tensor) -> Tensor:
    return weight.flatten(1).T


def _flattened(orders: tuple[tuple[int, ...], ...]) -> tuple[Callable[..., Tensor], ...]:
    def of(order: tuple[int, ...]) -> Callable[..., Tensor]:
        return _embedded(lambda weight: weight.permute(*order).flatten(1).T)

    return tuple(of(order) for order in orders)


_EMBED_MISTAKES = (
    Mistake(
        "the weight is flattened with its channels behind rows or columns. A patch of 7.1 has all "
        "of the first channel first: which number of the weight does each of its numbers meet?",
        _flattened(_CHANNELS_LAST),
    ),
    Mistake(
        "the weight is flattened column by column, and patches are read row by row. Which number "
        "of the weight does each number of a patch meet?",
        _flattened(_COLUMNS_FIRST),
    ),
    Mistake(
        "the matrix lies on its side. Where tokens are as wide as patches its shape fits all the "
        "same; elsewhere a `reshape` makes it fit, and moves no number. Over which of its two "
        "axes does a token's sum run?",
        (
            _embedded(lambda weight: weight.flatten(1)),
            _embedded(lambda weight: weight.reshape(-1, len(weight))),
        ),
    ),
    Mistake(
        "the bias is lost: what does the convolution make of a black image?",
        (_embedded(_flat, torch.zeros_like),),
    ),
    Mistake(
        "the weight is turned round, as in the convolution of a mathematician. Here the weight's "
        "first number meets the patch's first: what does PyTorch do?",
        (
            _embedded(lambda weight: _flat(weight.flip(2, 3))),
            _embedded(lambda weight: _flat(weight.flip(1, 2, 3))),
        ),
    ),
    Mistake(
        "products are averaged, and a convolution adds them up.",
        (
            _embedded(lambda weight: _flat(weight) / weight[0].numel()),
            _embedded(lambda weight: _flat(weight) / weight[0, 0].numel()),
        ),
    ),
    Mistake(
        "only one channel is looked at. Of which numbers is one number of a token the sum?",
        (
            _embedded(lambda weight: _flat(torch.cat([weight[:, :1], 0 * weight[:, 1:]], 1))),
            _embedded(lambda weight: _flat(torch.cat([0 * weight[:, :-1], weight[:, -1:]], 1))),
        ),
    ),
    Mistake(
        "the bias counts more than once, once for each number of a patch: where does your sum end?",
        (
            lambda x, weight, bias: _embed(x, weight, bias * x.shape[2]),
            lambda x, weight, bias: _embed(x, weight, bias * weight.shape[1]),
            lambda x, weight, bias: _embed(x, weight, 2 * bias),
        ),
    ),
)


def _by_weight(
    products: Callable[[Tensor, Tensor], Tensor],
) -> Callable[..., Tensor]:
    """Something else made of patches and gradient, ``[d, K]`` or ``[K, d]``, in the order given."""

    def answer(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
        return products(x, grad).reshape(weight.shape)

    return answer


def _sum(x: Tensor, grad: Tensor) -> Tensor:
    return torch.einsum("bta,btc->ac", grad, x)


def _unflattened(
    orders: tuple[tuple[int, ...], ...],
) -> tuple[Callable[..., Tensor], ...]:
    """Numbers taken to lie in another order; then put into the weight's."""

    def of(order: tuple[int, ...]) -> Callable[..., Tensor]:
        def answer(x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
            shape = [weight.shape[axis] for axis in order]
            back = [order.index(axis) for axis in range(4)]
            return _sum(x, grad).reshape(shape).permute(*back)

        return answer

    return tuple(of(order) for order in orders)


_DKERNEL_MISTAKES = (
    Mistake(
        "this is a mean, and the gradient is a sum. The loss is one number, and the weight had a "
        "part in every patch of every image: what has it to do with how many they are?",
        (
            _by_weight(lambda x, grad: _sum(x, grad) / x.shape[1]),
            _by_weight(lambda x, grad: _sum(x, grad) / len(x)),
            _by_weight(lambda x, grad: _sum(x, grad) / (len(x) * x.shape[1])),
        ),
    ),
    Mistake(
        "only one image counts, or one patch of each. Which tokens would move if one number of "
        "the weight did?",
        (
            _by_weight(lambda x, grad: _sum(x[:1], grad[:1])),
            _by_weight(lambda x, grad: _sum(x[-1:], grad[-1:])),
            _by_weight(lambda x, grad: _sum(x[:, :1], grad[:, :1])),
            _by_weight(lambda x, grad: _sum(x[:, -1:], grad[:, -1:])),
        ),
    ),
    Mistake(
        "patches and gradients have changed places: the product is [K, d], and `reshape` made the "
        "shape fit without moving a number. Which of the two gives the rows of the weight?",
        (_by_weight(lambda x, grad: _sum(x, grad).T.contiguous()),),
    ),
    Mistake(
        "the numbers of the gradient are put back with the channels behind rows or columns. In "
        "which order do the columns of E stand?",
        _unflattened(_CHANNELS_LAST),
    ),
    Mistake(
        "the numbers of the gradient are put back column by column. In which order do the columns "
        "of E stand?",
        _unflattened(_COLUMNS_FIRST),
    ),
    Mistake(
        "patches and gradients are added up before they are multiplied. Each patch has a gradient "
        "of its own: is a sum of products the product of the sums?",
        (
            _by_weight(lambda x, grad: torch.outer(grad.sum((0, 1)), x.sum((0, 1)))),
            _by_weight(lambda x, grad: torch.einsum("ba,bc->ac", grad.sum(1), x.sum(1))),
            _by_weight(lambda x, grad: torch.einsum("ta,tc->ac", grad.sum(0), x.sum(0))),
        ),
    ),
    Mistake(
        "images and patches were made one axis by a `reshape` that tears rows apart: it moves no "
        "number, and d is the last axis of `grad`. Which axes belong together before the product, "
        "and what exchanges the two that are left?",
        (
            _by_weight(lambda x, grad: grad.reshape(grad.shape[2], -1) @ x.flatten(0, 1)),
            _by_weight(lambda x, grad: grad.mT.reshape(grad.shape[2], -1) @ x.flatten(0, 1)),
        ),
    ),
    Mistake(
        "the weight itself is in its gradient. Tokens are linear in it: what is the derivative of "
        "w x by w?",
        (lambda x, weight, grad: _embed_backward(x, weight, grad)[0] * weight,),
    ),
    Mistake(
        "the gradient of the tokens is not used: this is the gradient of their sum. What does the "
        "chain rule multiply with what?",
        (_by_weight(lambda x, grad: x.sum((0, 1)).expand(grad.shape[2], -1)),),
    ),
    Mistake(
        "the sign is wrong: the gradient points uphill. Who takes the step down?",
        (_by_weight(lambda x, grad: -_sum(x, grad)),),
    ),
)

_DBIAS_MISTAKES = (
    Mistake(
        "the bias's gradient is averaged. The bias is added to every token of every image: how "
        "often does it count in the loss?",
        (
            lambda x, weight, grad: grad.mean((0, 1)),
            lambda x, weight, grad: grad.mean(1).sum(0),
            lambda x, weight, grad: grad.sum(1).mean(0),
        ),
    ),
    Mistake(
        "the bias's gradient comes from one image only, or from one patch of each. Which tokens "
        "does the bias go to?",
        (
            lambda x, weight, grad: grad[0].sum(0),
            lambda x, weight, grad: grad[-1].sum(0),
            lambda x, weight, grad: grad[:, 0].sum(0),
            lambda x, weight, grad: grad[:, -1].sum(0),
        ),
    ),
    Mistake(
        "the bias's gradient counts the tokens: that is the gradient of their sum. Where is g?",
        (
            lambda x, weight, grad: torch.full_like(grad[0, 0], len(grad) * grad.shape[1]),
            lambda x, weight, grad: torch.full_like(grad[0, 0], grad.shape[1]),
            lambda x, weight, grad: torch.ones_like(grad[0, 0]),
        ),
    ),
    Mistake(
        "the bias's gradient has the weight's in it: by what is a bias multiplied?",
        (
            lambda x, weight, grad: _embed_backward(x, weight, grad)[0].sum((1, 2, 3)),
            lambda x, weight, grad: _embed_backward(x, weight, grad)[0].mean((1, 2, 3)),
        ),
    ),
    Mistake(
        "the sign of the bias's gradient is wrong.",
        (lambda x, weight, grad: -grad.sum((0, 1)),),
    ),
)


# 7.3 ---------------------------------------------------------------------------------

_Grid = tuple[int, int]


def _picture(rows: Tensor, old: _Grid) -> Tensor:
    """Rows of a table as a picture, ``[1, d, rows, columns]``."""
    return rows.unflatten(0, old).permute(2, 0, 1)[None]


def _listed(picture: Tensor) -> Tensor:
    """And back, ``[rows * columns, d]``."""
    return picture[0].flatten(1).T


def _resized(
    read: Callable[[Tensor, _Grid], Tensor] = _picture,
    back: Callable[[Tensor], Tensor] = _listed,
    size: Callable[[_Grid], _Grid] = lambda new: new,
    **options: Any,
) -> Callable[..., Tensor]:
    """The class token's row apart, as it should be; another way there, or back."""
    options = {"mode": "bilinear"} | options

    def answer(table: Tensor, old: _Grid, new: _Grid) -> Tensor:
        larger = F.interpolate(read(table[1:], old), size(new), **options)
        return torch.cat([table[:1], back(larger)])

    return answer


def _turned(grid: _Grid) -> _Grid:
    return grid[1], grid[0]


def _transposed(rows: Tensor, old: _Grid) -> Tensor:
    """The right picture on its side."""
    return _picture(rows, old).transpose(2, 3)


def _misread(rows: Tensor, old: _Grid) -> Tensor:
    """The table read with as many rows as there are columns."""
    return _picture(rows, _turned(old))


def _torn(rows: Tensor, old: _Grid) -> Tensor:
    return rows.reshape(1, rows.shape[1], *old)


def _back_torn(picture: Tensor) -> Tensor:
    return picture.reshape(-1, picture.shape[1])


def _back_transposed(picture: Tensor) -> Tensor:
    return _listed(picture.transpose(2, 3))


def _in_a_row(table: Tensor, count: int, **options: Any) -> Tensor:
    """Rows of a table interpolated as a list."""
    return F.interpolate(table.T[None], count, mode="linear", **options)[0].T


def _count(grid: _Grid) -> int:
    return grid[0] * grid[1]


def _class_row(row: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """Something else in the class token's place."""
    return lambda table, old, new: torch.cat([row(table), _resize(table, old, new)[1:]])


def _last_is_class(table: Tensor, old: _Grid) -> Tensor:
    return torch.cat([table[-1:], table[:-1]])


_RESIZE_MISTAKES = (
    Mistake(
        "the class token's row is interpolated with the others, as one long list. Where on the "
        "image does the class token stand?",
        (
            lambda table, old, new: _in_a_row(table, 1 + _count(new)),
            lambda table, old, new: _in_a_row(table, 1 + _count(new), align_corners=True),
        ),
    ),
    Mistake(
        "the patches are interpolated as one long list: the last of a row and the first of the "
        "next are taken for neighbours, and who is above whom is forgotten. What shape does the "
        "list come from?",
        (
            lambda table, old, new: torch.cat([table[:1], _in_a_row(table[1:], _count(new))]),
            lambda table, old, new: torch.cat(
                [table[:1], _in_a_row(table[1:], _count(new), align_corners=True)]
            ),
        ),
    ),
    Mistake(
        "`reshape` is used where axes have to be exchanged: it moves no number, and the channels "
        "are torn to pieces. On the way there, or on the way back: which axes are in your tensor, "
        "in which order?",
        (
            _resized(read=_torn),
            _resized(back=_back_torn),
            _resized(read=_torn, back=_back_torn),
        ),
    ),
    Mistake(
        "rows and columns have changed places. The table numbers the patches row by row; a grid is "
        "(rows, columns), and a picture, too. A square grid would have hidden it from the shapes.",
        (
            _resized(read=_misread, size=_turned),
            _resized(read=_misread),
            _resized(size=_turned),
            _resized(back=_back_transposed),
            _resized(read=_transposed),
            _resized(read=_transposed, size=_turned),
            _resized(read=_transposed, back=_back_transposed),
            _resized(read=_misread, back=_back_transposed),
            _resized(read=_misread, size=_turned, back=_back_transposed),
            _resized(size=_turned, back=_back_transposed),
        ),
    ),
    Mistake(
        "the middles of the outermost patches are laid on each other. A patch has a width: where "
        "does the edge of the image stand, and what are `align_corners`?",
        (_resized(align_corners=True),),
    ),
    Mistake(
        "each new place takes over the row of one old place. Between two of them, what would a "
        "map of temperatures show?",
        (_resized(mode="nearest"), _resized(mode="nearest-exact")),
    ),
    Mistake(
        "cubic, not linear: a good choice too, and the package's; but another one. Which `mode` "
        "was asked for?",
        (_resized(mode="bicubic"), _resized(mode="bicubic", align_corners=True)),
    ),
    Mistake(
        "on a smaller grid several old places are averaged into a new one. That is the better "
        "way to make a picture smaller; but asked for are the two nearest in each direction. "
        "Which option does it, or which `mode`?",
        (_resized(antialias=True), _resized(mode="area")),
    ),
    Mistake(
        "the class token's row is at the end. Where does the table have it?",
        (lambda table, old, new: _resize(table, old, new).roll(-1, 0),),
    ),
    Mistake(
        "the last row is taken for the class token's. Which one is it?",
        (
            lambda table, old, new: _resize(_last_is_class(table, old), old, new),
            lambda table, old, new: _resize(_last_is_class(table, old), old, new).roll(-1, 0),
            lambda table, old, new: torch.cat(
                [table[:1], _resize(_last_is_class(table, old), old, new)[1:]]
            ),
        ),
    ),
    Mistake(
        "the class token has lost its row: something else stands in its place. What has a new grid "
        "to do with a token that stands nowhere?",
        (
            _class_row(lambda table: 0 * table[:1]),
            _class_row(lambda table: table.mean(0, keepdim=True)),
            _class_row(lambda table: table[1:].mean(0, keepdim=True)),
            _class_row(lambda table: table[1:2]),
        ),
    ),
)

_NO_CLASS_ROW = (
    "there are {} rows, one for each new patch, and one is missing: which token is no patch, and "
    "needs a position all the same?"
)


# 7.4 ---------------------------------------------------------------------------------


def _mixed(mean: Tensor) -> Tensor:
    """A layer, ``[..., n, n]``, as rollout takes it."""
    return (mean + torch.eye(mean.shape[-1], dtype=mean.dtype)) / 2


def _down(layers: Tensor) -> Tensor:
    """The product of layers, the last of them on the left."""
    product = torch.eye(layers.shape[-1], dtype=layers.dtype)
    for layer in layers:
        product = layer @ product
    return product


def _rolled(
    layers: Callable[[Tensor], Tensor],
    read: Callable[[Tensor], Tensor] = lambda product: product[0],
) -> Callable[..., Tensor]:
    """Other layers, made of all weights; something else of the product."""
    return lambda weights: read(_down(layers(weights)))


def _normalised(layers: Tensor) -> Tensor:
    return layers / layers.sum(-1, keepdim=True)


def _with_identity(layers: Tensor) -> Tensor:
    return layers + torch.eye(layers.shape[-1], dtype=layers.dtype)


def _mean(weights: Tensor) -> Tensor:
    return _mixed(weights.mean(1))


def _on_the_left(layers: Tensor) -> Tensor:
    """The first of these layers' row 0, and the others from the left."""
    row = layers[0, 0]
    for layer in layers[1:]:
        row = layer @ row
    return row


def _begun_anew(layers: Tensor, share: float) -> Tensor:
    """The identity added after each layer."""
    identity = torch.eye(layers.shape[-1], dtype=layers.dtype)
    product = identity
    for layer in layers:
        product = layer @ product + share * identity
    return product[0]


def _some(layers: Tensor) -> Tensor:
    """The same; without any there is no opinion: a loop that leaves one out may begin with it."""
    if not len(layers):
        raise IndexError
    return layers


_ROLLOUT_MISTAKES = (
    Mistake(
        "the layers are multiplied in the other order. A row of a layer's matrix says what a token "
        "*above* is made of: which layer's row belongs to the token that one asks about?",
        (
            _rolled(lambda weights: _mean(weights).flip(0)),
            _rolled(lambda weights: torch.cat([_mean(weights)[:-1].flip(0), _mean(weights)[-1:]])),
        ),
    ),
    Mistake(
        "a row stands on the right of a matrix: `layer @ row` takes it for a column. On which side "
        "of the next layer does row 0 of a product stand?",
        (
            lambda weights: _on_the_left(_mean(weights).flip(0)),
            lambda weights: _on_the_left(_mean(weights)),
        ),
    ),
    Mistake(
        "the mean runs over the layers, and heads are multiplied with each other. Along which axis "
        "of `weights` do the heads lie?",
        (_rolled(lambda weights: _mixed(weights.mean(0))),),
    ),
    Mistake(
        "a half is added to every number of a layer. Where does the identity have its ones?",
        (_rolled(lambda weights: weights.mean(1) / 2 + 0.5),),
    ),
    Mistake(
        "the identity is added to the product, not to the layer. The way around a layer carries "
        "what the layers below it made: is that the token's input?",
        (
            lambda weights: _begun_anew(weights.mean(1) / 2, 0.5),
            lambda weights: _begun_anew(weights.mean(1), 1.0),
        ),
    ),
    Mistake(
        "a column is read: what became of the class token's input, in all the tokens. Asked for "
        "is what is in the class token.",
        (
            _rolled(_mean, lambda product: product[:, 0]),
            _rolled(lambda weights: _mean(weights).flip(0), lambda product: product[:, 0]),
        ),
    ),
    Mistake(
        "the identity is missing: as if a token forgot itself in every layer. What does the "
        "residual connection do?",
        (
            _rolled(lambda weights: weights.mean(1)),
            _rolled(lambda weights: weights.mean(1) / 2),
        ),
    ),
    Mistake(
        "the rows of a layer sum to more than one, and its answer, too: more is handed on than "
        "there was. What becomes of the two halves?",
        (
            _rolled(lambda weights: 2 * _mean(weights)),
            _rolled(lambda weights: _mean(weights) + weights.mean(1) / 2),
            _rolled(lambda weights: _with_identity(weights.mean(1) / 2)),
        ),
    ),
    Mistake(
        "heads are added up, and the mean was asked for: with h heads a layer's weights sum to h.",
        (
            _rolled(lambda weights: _mixed(weights.sum(1))),
            _rolled(lambda weights: _with_identity(weights.sum(1))),
            _rolled(lambda weights: weights.sum(1)),
            _rolled(lambda weights: _normalised(_with_identity(weights.sum(1)))),
        ),
    ),
    Mistake(
        "the largest of the heads' weights is taken, or the smallest. Some programs do so; do rows "
        "then still sum to one, and what was asked for?",
        (
            _rolled(lambda weights: _mixed(weights.amax(1))),
            _rolled(lambda weights: _normalised(_mixed(weights.amax(1)))),
            _rolled(lambda weights: _mixed(_normalised(weights.amax(1)))),
            _rolled(lambda weights: _mixed(weights.amin(1))),
            _rolled(lambda weights: _normalised(_mixed(weights.amin(1)))),
        ),
    ),
    Mistake(
        "one head is followed through the layers: what of the others?",
        (
            _rolled(lambda weights: _mixed(weights[:, 0])),
            _rolled(lambda weights: _mixed(weights[:, -1])),
        ),
    ),
    Mistake(
        "only one layer is looked at. What it reads are tokens that have read before.",
        (
            _rolled(lambda weights: _mean(weights)[-1:]),
            _rolled(lambda weights: _mean(weights)[:1]),
            _rolled(lambda weights: weights.mean(1)[-1:]),
            _rolled(lambda weights: weights.mean(1)[:1]),
        ),
    ),
    Mistake(
        "the layers are averaged. One stands on the other: what does the upper one make of what "
        "the lower one handed on?",
        (
            lambda weights: _mean(weights).mean(0)[0],
            lambda weights: weights.mean((0, 1))[0],
            lambda weights: _mean(weights).sum(0)[0],
        ),
    ),
    Mistake(
        "a layer is missing, or counts twice: where does your loop begin and end, and where did "
        "your row come from before it?",
        (
            _rolled(lambda weights: _some(_mean(weights)[1:])),
            _rolled(lambda weights: _some(_mean(weights)[:-1])),
            _rolled(lambda weights: torch.cat([_mean(weights), _mean(weights)[-1:]])),
            _rolled(lambda weights: torch.cat([_mean(weights)[:1], _mean(weights)])),
        ),
    ),
    Mistake(
        "the identity comes in twice, and three quarters of a token stay what they were.",
        (
            _rolled(lambda weights: _mixed(_mean(weights))),
            _rolled(lambda weights: _normalised(_with_identity(2 * _mean(weights)))),
        ),
    ),
    Mistake(
        "the identity is mixed in once, at the end or at the beginning. Every layer has its way "
        "around.",
        (
            lambda weights: _mixed(_down(weights.mean(1)))[0],
            _rolled(lambda weights: torch.cat([_mean(weights)[:1], weights[1:].mean(1)])),
            _rolled(lambda weights: torch.cat([weights[:-1].mean(1), _mean(weights)[-1:]])),
        ),
    ),
    Mistake(
        "matrices are multiplied number by number. What does `@` do that `*` does not?",
        (
            lambda weights: _mean(weights).prod(0)[0],
            lambda weights: weights.mean(1).prod(0)[0],
        ),
    ),
    Mistake(
        "this is another token's row, or the mean of all: which token is the class token?",
        (
            _rolled(_mean, lambda product: product[-1]),
            _rolled(_mean, lambda product: product.mean(0)),
            _rolled(_mean, lambda product: product.sum(0)),
        ),
    ),
    Mistake(
        "the class token's own share is taken out. It is part of the answer: what does it say?",
        (
            lambda weights: _without_first(_rollout(weights)),
            lambda weights: _normalised(_without_first(_rollout(weights))),
        ),
    ),
)


def _without_first(row: Tensor) -> Tensor:
    return torch.cat([0 * row[:1], row[1:]])


# 7.5 ---------------------------------------------------------------------------------


def _real(tokens: Tensor, counts: Tensor, more: int = 0) -> Tensor:
    """Which patches are real, ``[batch, m, 1]``, or so many more."""
    return (torch.arange(tokens.shape[1] - 1) < counts[:, None] + more).unsqueeze(2)


def _kept(tokens: Tensor, counts: Tensor, more: int = 0) -> Tensor:
    """The sum of the patches that are real."""
    return tokens[:, 1:].masked_fill(~_real(tokens, counts, more), 0).sum(1)


def _each(counts: Tensor) -> Tensor:
    return counts[:, None]


def _to_count(tokens: Tensor, count: int) -> Tensor:
    return tokens[:, 1 : 1 + count].mean(1)


_PADDING_COUNTED = (lambda tokens, counts: tokens[:, 1:].mean(1),)
_CLASS_AVERAGED = (
    lambda tokens, counts: (tokens[:, 0] + _kept(tokens, counts)) / (_each(counts) + 1),
    lambda tokens, counts: (tokens[:, 0] + _kept(tokens, counts)) / _each(counts),
    lambda tokens, counts: tokens.mean(1),
    lambda tokens, counts: (tokens[:, 0] + _kept(tokens, counts, -1)) / _each(counts),
    lambda tokens, counts: (tokens[:, 0] + _kept(tokens, counts)) / tokens.shape[1],
)
_DIVIDED_BY_M = (
    lambda tokens, counts: _kept(tokens, counts) / (tokens.shape[1] - 1),
    lambda tokens, counts: _kept(tokens, counts) / tokens.shape[1],
)
_TIMES_ZERO = (
    lambda tokens, counts: (tokens[:, 1:] * _real(tokens, counts)).sum(1) / _each(counts),
)

_CLASS_MISTAKES = (
    Mistake(
        "the first of the two is a mean. Which was asked for first?",
        (_mean_patch, *_PADDING_COUNTED, *_CLASS_AVERAGED, *_DIVIDED_BY_M, *_TIMES_ZERO),
    ),
    Mistake(
        "another token is taken for the class token: the last one, or a patch. Which is it?",
        (
            lambda tokens, counts: tokens[:, -1],
            lambda tokens, counts: tokens[torch.arange(len(counts)), counts],
            lambda tokens, counts: tokens[:, 1],
        ),
    ),
    Mistake(
        "these are the tokens of one image, or an average over images: along which axis of "
        "`tokens` do the images lie, and along which the tokens?",
        (
            lambda tokens, counts: tokens[0],
            lambda tokens, counts: tokens[-1],
            lambda tokens, counts: tokens.mean(0),
        ),
    ),
    Mistake(
        "this is one channel of every token. Over which axis was 0 chosen?",
        (
            lambda tokens, counts: tokens[:, 1:, 0],
            lambda tokens, counts: tokens[:, :-1, 0],
        ),
    ),
)

_MEAN_MISTAKES = (
    Mistake(
        "the class token is averaged in. It is one vote too many: from which token on are there "
        "patches, and how many are there?",
        _CLASS_AVERAGED,
    ),
    Mistake(
        "padding is counted. Which of the m patches of image i are real?",
        _PADDING_COUNTED,
    ),
    Mistake(
        "the sum is right, and it is divided by how many patches there is room for. Of how many "
        "is it the sum?",
        _DIVIDED_BY_M,
    ),
    Mistake(
        "what lies in the padding leaks. 0 * NaN is NaN, and 0 * inf, too: is there a way to "
        "replace a number, whatever it is?",
        _TIMES_ZERO,
    ),
    Mistake(
        "NaN is left out of the mean, and other padding is not. Whether a patch is real, who knows "
        "that: its numbers, or `counts`?",
        (
            lambda tokens, counts: tokens[:, 1:].nanmean(1),
            lambda tokens, counts: tokens[:, 1:].nan_to_num(0).sum(1) / _each(counts),
            lambda tokens, counts: tokens[:, 1:].nan_to_num(0).mean(1),
        ),
    ),
    Mistake(
        "one patch too few is counted, or one too many. Was a token's number held against "
        "`counts`, or a patch's? Is the last real patch in?",
        (
            lambda tokens, counts: _kept(tokens, counts, -1) / _each(counts),
            lambda tokens, counts: _kept(tokens, counts, 1) / _each(counts),
            lambda tokens, counts: _kept(tokens, counts, -1) / (_each(counts) - 1),
            lambda tokens, counts: _kept(tokens, counts, 1) / (_each(counts) + 1),
            lambda tokens, counts: _kept(tokens, counts) / (_each(counts) + 1),
            lambda tokens, counts: _kept(tokens, counts) / (_each(counts) - 1),
        ),
    ),
    Mistake(
        "the patches are added up, and not divided by anything.",
        (_kept, lambda tokens, counts: tokens[:, 1:].sum(1)),
    ),
    Mistake(
        "the same number of patches is taken of every image. `counts` has a number for each.",
        (
            lambda tokens, counts: _to_count(tokens, int(counts.max())),
            lambda tokens, counts: _to_count(tokens, int(counts.min())),
            lambda tokens, counts: _to_count(tokens, int(counts[0])),
        ),
    ),
    Mistake(
        "the mean runs over the channels of each patch; wanted is one number for each channel.",
        (
            lambda tokens, counts: tokens[:, 1:].mean(2),
            lambda tokens, counts: tokens[:, 1:].masked_fill(~_real(tokens, counts), 0).mean(2),
            lambda tokens, counts: (
                tokens[:, 1:].masked_fill(~_real(tokens, counts), 0).sum(2) / _each(counts)
            ),
        ),
    ),
    Mistake(
        "the mask is the wrong way round: these are the patches that are not real.",
        (
            lambda tokens, counts: (
                tokens[:, 1:].masked_fill(_real(tokens, counts), 0).sum(1) / _each(counts)
            ),
        ),
    ),
    Mistake(
        "the largest number of each channel is taken, and the mean was asked for; or what is not "
        "real was made infinite, which a softmax wants, and no mean.",
        (
            lambda tokens, counts: (
                tokens[:, 1:].masked_fill(~_real(tokens, counts), -torch.inf).mean(1)
            ),
            lambda tokens, counts: (
                tokens[:, 1:].masked_fill(~_real(tokens, counts), -torch.inf).amax(1)
            ),
        ),
    ),
    Mistake(
        "the second of the two is a token as it is. Which answer was asked for second?",
        (_class_token, lambda tokens, counts: tokens[:, 1], lambda tokens, counts: tokens[:, -1]),
    ),
)


# 7.6 ---------------------------------------------------------------------------------


class _Setting:
    """The numbers of a case, as a kernel knows them."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.channels, height, self.width = given["image"].shape
        self.ph, self.pw = given["patch"]
        self.grid_h, self.grid_w = height // self.ph, self.width // self.pw
        self.area, self.plane = self.ph * self.pw, height * self.width
        self.numbers, self.step = self.channels * self.area, given["blocks"][2]
        self.patch, self.k = torch.arange(self.grid_h * self.grid_w), torch.arange(self.numbers)

    def corner(self) -> Tensor:
        """Where each patch begins."""
        down, across = self.patch // self.grid_w, self.patch % self.grid_w
        return down * self.ph * self.width + across * self.pw

    def within(self) -> Tensor:
        """Where each number of a patch lies, from there."""
        place = self.k % self.area
        return self.k // self.area * self.plane + place // self.pw * self.width + place % self.pw


def _products(image: Tensor, weight: Tensor, places: Tensor) -> Tensor:
    """The product of what lies at these places, ``[m, K]``, with the weight."""
    return image.flatten()[places] @ weight.T


def _read_at(places: Callable[[_Setting], Tensor]) -> Callable[..., Tensor]:
    """Pixels from other places; an image that ends before them has no opinion."""

    def answer(**given: Any) -> Tensor:
        products = _products(given["image"], given["weight"], places(_Setting(given)))
        rest = torch.cat([given["class_token"][None], products + given["bias"]])
        return rest + given["position"]

    return answer


def _counted(times: Callable[[_Setting], Tensor]) -> Callable[..., Tensor]:
    """Each number of a patch so many times."""

    def answer(**given: Any) -> Tensor:
        weight = given["weight"] * times(_Setting(given))
        return _patch_tokens(**{**given, "weight": weight})

    return answer


def _made_of(
    tokens: Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor],
) -> Callable[..., Tensor]:
    """Another epilogue: of products (a row of zeros first), bias, class, positions, steps."""

    def answer(**given: Any) -> Tensor:
        setting = _Setting(given)
        places = setting.corner()[:, None] + setting.within()
        products = _products(given["image"], given["weight"], places)
        products = torch.cat([torch.zeros_like(products[:1]), products])
        steps = -(-setting.numbers // setting.step)
        return tokens(products, given["bias"], given["class_token"], given["position"], steps)

    return answer


def _first_row(first: Tensor, rest: Tensor) -> Tensor:
    """Another first row."""
    return torch.cat([first[None], rest[1:]])


def _before(position: Tensor) -> Tensor:
    """The position of the patch, where the token's should be."""
    return torch.cat([position[:1], position[:-1]])


def _shifted(**given: Any) -> Tensor:
    """Token t shows patch t: the first patch is lost, and the last token has none."""
    setting = _Setting(given)
    places = setting.corner()[:, None] + setting.within()
    products = _products(given["image"], given["weight"], places)
    products = torch.cat([products[1:], torch.zeros_like(products[:1])])
    rest = torch.cat([given["class_token"][None], products + given["bias"]])
    return rest + given["position"]


_IMAGE_MISTAKES = (
    Mistake(
        "only the first BLOCK_K numbers of a patch count. Where does the rest come in?",
        (_counted(lambda s: (s.k < s.step).double()),),
    ),
    Mistake(
        "only the last step counts: each one overwrites what the one before has worked out. What "
        "does the sum begin with, and how does it grow?",
        (_counted(lambda s: (s.k >= (s.numbers - 1) // s.step * s.step).double()),),
    ),
    Mistake(
        "numbers of a patch count more than once: the loop goes on by one number, and takes "
        "BLOCK_K. What is the third argument of `range`?",
        (_counted(lambda s: (s.k + 1).clamp(max=s.step).double()),),
    ),
    Mistake(
        "the bias, or the position, is added in every step of the loop. For a patch of one step "
        "that is right; how often does it belong to a token?",
        (
            _made_of(
                lambda x, bias, first, p, steps: _first_row(first, x + steps * bias) + p,
            ),
            _made_of(
                lambda x, bias, first, p, steps: (
                    _first_row(first, x + steps * bias + steps * p - p) + p
                ),
            ),
            _made_of(lambda x, bias, first, p, steps: _first_row(first, x + bias) + steps * p),
            _made_of(
                lambda x, bias, first, p, steps: _first_row(first, x + bias + (steps - 1) * p) + p,
            ),
            _made_of(
                lambda x, bias, first, p, steps: _first_row(first, x + steps * bias) + steps * p,
            ),
            _made_of(
                lambda x, bias, first, p, steps: (
                    _first_row(steps * first, x + steps * bias) + steps * p
                ),
            ),
            _made_of(
                lambda x, bias, first, p, steps: _first_row(steps * first, x + steps * bias) + p,
            ),
            _made_of(
                lambda x, bias, first, p, steps: (
                    _first_row(steps * bias + first, x + steps * bias) + p
                ),
            ),
        ),
    ),
    Mistake(
        "the class token gets a bias. It has been through no product: what does its formula say?",
        (_made_of(lambda x, bias, first, p, steps: _first_row(first + bias, x + bias) + p),),
    ),
    Mistake(
        "row 0 has no class token. Its product is zero: what is to stand in its place?",
        (
            _made_of(lambda x, bias, first, p, steps: x + bias + p),
            _made_of(lambda x, bias, first, p, steps: _first_row(0 * first, x + bias) + p),
        ),
    ),
    Mistake(
        "the class token is added to every token, the patches too. Which row of which tile is its "
        "own?",
        (
            _made_of(lambda x, bias, first, p, steps: x + bias + first + p),
            _made_of(lambda x, bias, first, p, steps: _first_row(0 * first, x + bias) + first + p),
        ),
    ),
    Mistake(
        "in each tile the first row gets the class token. Of all tiles, which one holds token 0?",
        (
            lambda **given: _each_tile(**given),
            lambda **given: _each_tile(**given, bias_too=True),
        ),
    ),
    Mistake(
        "the bias is missing.",
        (_made_of(lambda x, bias, first, p, steps: _first_row(first, x) + p),),
    ),
    Mistake(
        "the positions are missing: to all tokens, or to the class token? It has one, too.",
        (
            _made_of(lambda x, bias, first, p, steps: _first_row(first, x + bias)),
            _made_of(lambda x, bias, first, p, steps: _first_row(first, x + bias + p)),
        ),
    ),
    Mistake(
        "each patch has the position of the token before it. Positions are numbered as tokens are: "
        "which number has the first patch among them?",
        (
            _made_of(lambda x, bias, first, p, steps: _first_row(first, x + bias) + _before(p)),
            _made_of(
                lambda x, bias, first, p, steps: _first_row(first, x + bias + _before(p)),
            ),
        ),
    ),
    Mistake(
        "the first patch is nowhere: token t shows patch t. Which one shows patch 0?",
        (_shifted,),
    ),
    Mistake(
        "every token has the position of one and the same place: where does the row of the tile "
        "come into its address?",
        (
            _made_of(lambda x, bias, first, p, steps: _first_row(first, x + bias) + p[:1]),
            _made_of(lambda x, bias, first, p, steps: _first_row(first + p[0], x + bias + p[1])),
        ),
    ),
    Mistake(
        "a row of the image is taken to be as long as a row of a patch. How many pixels lie "
        "between a pixel and the one below it?",
        (
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + (s.k // s.area * s.plane + s.k % s.area // s.pw * s.pw + s.k % s.pw)
                )
            ),
            _read_at(
                lambda s: (
                    (s.patch // s.grid_w * s.ph * s.pw + s.patch % s.grid_w * s.pw)[:, None]
                    + s.within()
                )
            ),
            _read_at(
                lambda s: (
                    (s.patch // s.grid_w * s.ph * s.pw + s.patch % s.grid_w * s.pw)[:, None]
                    + (s.k // s.area * s.plane + s.k % s.area // s.pw * s.pw + s.k % s.pw)
                )
            ),
        ),
    ),
    Mistake(
        "a patch is read as if its pixels lay one behind the other in memory. Where does its "
        "second row begin?",
        (
            _read_at(lambda s: s.corner()[:, None] + s.k),
            _read_at(lambda s: s.patch[:, None] * s.numbers + s.k),
            _read_at(lambda s: s.patch[:, None] * s.area + s.k // s.area * s.plane + s.k % s.area),
        ),
    ),
    Mistake(
        "the pixels of a patch are numbered down its columns; or PH and PW have changed places. "
        "How long is a row of a patch?",
        (
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + s.k // s.area * s.plane
                    + s.k % s.area % s.ph * s.width
                    + s.k % s.area // s.ph
                )
            ),
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + s.k // s.area * s.plane
                    + s.k % s.area // s.ph * s.width
                    + s.k % s.area % s.ph
                )
            ),
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + s.k // s.area * s.plane
                    + s.k % s.area % s.pw * s.width
                    + s.k % s.area // s.pw
                )
            ),
        ),
    ),
    Mistake(
        "the patches are numbered down the columns of the grid; or GRID_H and GRID_W have changed "
        "places. How many patches has a row of the grid?",
        (
            _read_at(
                lambda s: (
                    (s.patch % s.grid_h * s.ph * s.width + s.patch // s.grid_h * s.pw)[:, None]
                    + s.within()
                )
            ),
            _read_at(
                lambda s: (
                    (s.patch // s.grid_h * s.ph * s.width + s.patch % s.grid_h * s.pw)[:, None]
                    + s.within()
                )
            ),
            _read_at(
                lambda s: (
                    (s.patch % s.grid_w * s.ph * s.width + s.patch // s.grid_w * s.pw)[:, None]
                    + s.within()
                )
            ),
        ),
    ),
    Mistake(
        "a patch begins PH rows below the one above it, and PW pixels beside the one before it: "
        "one of the two is lost, or they have changed places.",
        (
            _read_at(
                lambda s: (
                    (s.patch // s.grid_w * s.width + s.patch % s.grid_w * s.pw)[:, None]
                    + s.within()
                )
            ),
            _read_at(
                lambda s: (
                    (s.patch // s.grid_w * s.ph * s.width + s.patch % s.grid_w)[:, None]
                    + s.within()
                )
            ),
            _read_at(
                lambda s: (s.patch // s.grid_w * s.width + s.patch % s.grid_w)[:, None] + s.within()
            ),
            _read_at(
                lambda s: (
                    (s.patch // s.grid_w * s.pw * s.width + s.patch % s.grid_w * s.ph)[:, None]
                    + s.within()
                )
            ),
        ),
    ),
    Mistake(
        "every channel is read from a wrong place. How many pixels has one channel of the image, "
        "and which of the K numbers of a patch are the first channel's?",
        (
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + s.k // s.area * s.area
                    + s.k % s.area // s.pw * s.width
                    + s.k % s.pw
                )
            ),
            _read_at(lambda s: s.corner()[:, None] + (s.within() - s.k // s.area * s.plane)),
            _read_at(
                lambda s: (
                    s.corner()[:, None]
                    + s.k % s.channels * s.plane
                    + s.k // s.channels // s.pw * s.width
                    + s.k // s.channels % s.pw
                )
            ),
            _read_at(
                lambda s: s.corner()[:, None] + s.k // s.pw * s.width + s.k % s.pw,
            ),
            _read_at(
                lambda s: (
                    s.corner()[:, None] * s.channels
                    + s.k // s.area
                    + (s.k % s.area // s.pw * s.width + s.k % s.pw) * s.channels
                )
            ),
        ),
    ),
    Mistake(
        "the weight is read on its side. Its rows are the columns of the output, K numbers each: "
        "how far is it from one row to the next?",
        (
            lambda **given: _patch_tokens(
                **{
                    **given,
                    "weight": given["weight"].reshape(given["weight"].shape[1], -1).T,
                }
            ),
        ),
    ),
)


def _each_tile(bias_too: bool = False, **given: Any) -> Tensor:
    """The class token in the first row of each tile."""
    tokens = _patch_tokens(**given)
    first = torch.arange(len(tokens)) % given["blocks"][0] == 0
    wanted = given["class_token"] + given["position"]
    if bias_too:  # with what stands there already
        wanted = tokens + given["class_token"]
        wanted[0] = tokens[0]
    return torch.where(first[:, None], wanted, tokens)


_IMAGE_WORDS = Words(
    outside="a load reads past the end of its tensor, or before its beginning. On a GPU that is "
    "somebody else's memory. Which tokens have a patch? Which rows and columns of the last tiles "
    "exist, and which numbers of the last step? Tell `tl.load`, with mask=; and where does number "
    "k of patch q lie?",
    foreign="On a GPU all programs run at once: what would be left in that slot? Program (t, c) "
    "owns BLOCK_M tokens and BLOCK_N columns, those that exist. Which of the two axes of the grid "
    "counts tokens, and does the store have a mask?",
    nan="Lanes that a mask leaves out hold anything on a GPU, and here NaN: which number should a "
    "pixel or a weight that does not exist be, in a sum of products? Tell `tl.load`, with other=.",
    missing="Has each program a tile of BLOCK_M x BLOCK_N to store, with token 0 in the first?",
)
