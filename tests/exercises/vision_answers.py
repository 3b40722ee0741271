"""Answers to chapter 7's exercises: wrong ones, as students write them, and right ones."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from attn_course.exercises import tl, triton
from attn_course.exercises import vision as checks
from attn_course.exercises import vision_cases as cases
from attn_course.exercises import vision_mistakes as mistakes
from attn_course.vision import class_rollout, patch_embedding, patchify
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 7.1 ---------------------------------------------------------------------------------

cuts = wrong("7.1", "patches")


def _axes(images, rows, columns):
    b, c, h, w = images.shape
    return images.reshape(b, c, h // rows, rows, w // columns, columns)


def _by(*order):
    """The axes image, channel, patch down, row, patch across, column, in another order."""

    def patches(images, rows, columns):
        x = _axes(images, rows, columns).permute(*order)
        return x.reshape(len(images), -1, images.shape[1] * rows * columns)

    return patches


for _name, _order, _fragment in (
    ("columns of the grid first", (0, 4, 2, 1, 3, 5), "numbered down the columns of the grid"),
    ("columns of a patch first", (0, 2, 4, 1, 5, 3), "the pixels of a patch are numbered down"),
    ("all transposed", (0, 4, 2, 1, 5, 3), "this is the transposed image"),
    ("channels last", (0, 2, 4, 3, 5, 1), "within a patch the channels come last"),
    ("channels last, columns first", (0, 2, 4, 5, 3, 1), "within a patch the channels come last"),
    ("channels in the middle", (0, 2, 4, 3, 1, 5), "the channels stand between"),
    ("grid and channels", (0, 4, 2, 3, 5, 1), "both orders are wrong"),
    ("not permuted", (0, 1, 2, 3, 4, 5), "the order in which they lie in memory"),
    ("two axes exchanged", (0, 2, 1, 3, 4, 5), "only some axes have moved"),
    ("channels behind the rows", (0, 2, 3, 4, 1, 5), "only some axes have moved"),
    ("channels left in front", (0, 1, 2, 4, 3, 5), "the channels are cut apart"),
    ("batch behind", (2, 4, 0, 1, 3, 5), "images are mixed"),
):
    cuts(_name, _fragment)(_by(*_order))


@cuts("two unfolds", "the channels are cut apart")
def _(images, rows, columns):
    x = images.unfold(2, rows, rows).unfold(3, columns, columns)
    return x.reshape(len(images), -1, images.shape[1] * rows * columns)


@cuts("reshape alone", "the order in which they lie in memory")
def _(images, rows, columns):
    return images.reshape(len(images), -1, images.shape[1] * rows * columns)


@cuts("split along memory", "the order in which they lie in memory")
def _(images, rows, columns):
    b, c, h, w = images.shape
    x = images.reshape(b, c, h // rows, w // columns, rows, columns)
    return x.permute(0, 2, 3, 1, 4, 5).reshape(b, -1, c * rows * columns)


@cuts("square windows", "it returned shape [2, 18, 12]; expected")
def _(images, rows, columns):
    return F.unfold(images, rows, stride=rows).mT


@cuts("channels last, reshape alone", "the order in which they lie in memory")
def _(images, rows, columns):
    return images.permute(0, 2, 3, 1).reshape(len(images), -1, images.shape[1] * rows * columns)


@cuts("rows for columns", "have changed places: which of the two is the height")
def _(images, rows, columns):
    return patchify(images, (columns, rows))


@cuts("height for width", "this is the transposed image")
def _(images, rows, columns):
    b, c, w, h = images.shape
    x = images.reshape(b, c, w // columns, columns, h // rows, rows)
    return x.permute(0, 4, 2, 1, 5, 3).reshape(b, -1, c * rows * columns)


@cuts("split the other way", "a patch takes pixels that lie apart")
def _(images, rows, columns):
    b, c, h, w = images.shape
    x = images.reshape(b, c, rows, h // rows, columns, w // columns)
    return x.permute(0, 3, 5, 1, 2, 4).reshape(b, -1, c * rows * columns)


@cuts("unfold without a stride", "they overlap")
def _(images, rows, columns):
    return F.unfold(images, (rows, columns)).transpose(1, 2)


@cuts("windows that overlap", "they overlap")
def _(images, rows, columns):
    x = images.unfold(2, rows, 1).unfold(3, columns, 1).permute(0, 2, 3, 1, 4, 5)
    return x.reshape(len(images), -1, images.shape[1] * rows * columns)


@cuts("patches last", "the patches come last")
def _(images, rows, columns):
    return F.unfold(images, (rows, columns), stride=(rows, columns))


@cuts("patches last, reshaped", "`F.unfold` puts the patches last")
def _(images, rows, columns):
    x = F.unfold(images, (rows, columns), stride=(rows, columns))
    return x.reshape(len(images), -1, images.shape[1] * rows * columns)


@cuts("a grid of patches", "it returned shape [2, 3, 4, 18]")
def _(images, rows, columns):
    return _axes(images, rows, columns).permute(0, 2, 4, 1, 3, 5).flatten(3)


@cuts("a list", "returned a list")
def _(images, rows, columns):
    return list(patchify(images, (rows, columns)).unbind(1))


@cuts("view", "your code raised RuntimeError")
def _(images, rows, columns):
    return _axes(images, rows, columns).permute(0, 2, 4, 1, 3, 5).view(len(images), -1, 18)


def patches_unfold(images: Any, rows: int, columns: int) -> Any:
    """PyTorch's own sliding window."""
    return F.unfold(images, (rows, columns), stride=(rows, columns)).mT


def patches_indexed(images: Any, rows: int, columns: int) -> Any:
    """Where each number lies, by arithmetic."""
    _, c, h, w = images.shape
    m, k = torch.arange(h * w // rows // columns), torch.arange(c * rows * columns)
    corner = m // (w // columns) * rows * w + m % (w // columns) * columns
    within = k // (rows * columns) * h * w + k // columns % rows * w + k % columns
    return images.flatten(1)[:, corner[:, None] + within]


def patches_numpy(images: Any, rows: int, columns: int) -> Any:
    """Split and split again, in NumPy."""
    strips = np.split(images.numpy(), images.shape[2] // rows, axis=2)
    cut = [p for strip in strips for p in np.split(strip, images.shape[3] // columns, axis=3)]
    return torch.from_numpy(np.stack([p.reshape(len(p), -1) for p in cut], 1))


RIGHT["7.1"] = [
    ("F.unfold", [patches_unfold]),
    ("indices", [patches_indexed]),
    ("NumPy", [patches_numpy]),
]


# 7.2 ---------------------------------------------------------------------------------

embeds = wrong("7.2", "embed")
embeds_back = wrong("7.2", "embed_backward")


def embed_right(x: Any, weight: Any, bias: Any) -> Any:
    """Patches put together into one column, and a convolution over it."""
    b, m, _ = x.shape
    _, c, rows, columns = weight.shape
    image = x.unflatten(2, (c, rows, columns)).transpose(1, 2).reshape(b, c, m * rows, columns)
    return F.conv2d(image, weight, bias, stride=(rows, columns)).flatten(2).mT


def embed_backward_right(x: Any, weight: Any, grad: Any) -> Any:
    """One patch after the other."""
    by_weight = sum(
        torch.outer(g, p) for g, p in zip(grad.flatten(0, 1), x.flatten(0, 1), strict=True)
    )
    return by_weight.view_as(weight), sum(grad.flatten(0, 1))


embed_right.__name__, embed_backward_right.__name__ = "embed", "embed_backward"


@embeds("channels last", "with its channels behind rows or columns. A patch")
def _(x, weight, bias):
    return x @ weight.permute(0, 2, 3, 1).flatten(1).T + bias


@embeds("columns first", "the weight is flattened column by column")
def _(x, weight, bias):
    return x @ weight.transpose(2, 3).flatten(1).T + bias


@embeds("not transposed", "the matrix lies on its side")
def _(x, weight, bias):
    return x @ weight.flatten(1) + bias


@embeds("reshaped", "the matrix lies on its side")
def _(x, weight, bias):
    return x @ weight.reshape(x.shape[2], -1) + bias


@embeds("no bias", "what does the convolution make of a black image")
def _(x, weight, bias):
    return F.linear(x, weight.flatten(1))


@embeds("turned round", "as in the convolution of a mathematician")
def _(x, weight, bias):
    return F.linear(x, weight.flip(2, 3).flatten(1), bias)


@embeds("mean of products", "products are averaged")
def _(x, weight, bias):
    return (x[:, :, None] * weight.flatten(1)).mean(3) + bias


@embeds("bias within the sum", "the bias counts more than once")
def _(x, weight, bias):
    return (x[:, :, None] * weight.flatten(1) + bias[:, None]).sum(3)


@embeds("one channel", "only one channel is looked at")
def _(x, weight, bias):
    return x.unflatten(2, (weight.shape[1], -1))[:, :, 0] @ weight[:, 0].flatten(1).T + bias


@embeds("as a convolution returns it", "it returned shape [2, 24, 5]")
def _(x, weight, bias):
    return embed_right(x, weight, bias).mT


def _summed(x, grad):
    return torch.einsum("bta,btc->ac", grad, x)


def _back(by_weight, by_bias=lambda x, grad: grad.sum((0, 1))):
    return lambda x, weight, grad: (
        by_weight(x, grad).reshape(weight.shape), by_bias(x, grad)
    )  # fmt: skip


for _name, _function, _fragment in (
    ("mean over all", lambda x, g: _summed(x, g) / (len(x) * x.shape[1]), "this is a mean, and"),
    ("mean over images", lambda x, g: _summed(x, g) / len(x), "this is a mean, and"),
    ("mean over patches", lambda x, g: _summed(x, g) / x.shape[1], "this is a mean, and"),
    ("one image", lambda x, g: g[0].T @ x[0], "only one image counts"),
    ("one patch", lambda x, g: g[:, 0].T @ x[:, 0], "only one image counts"),
    ("exchanged", lambda x, g: torch.einsum("bta,btc->ca", g, x), "the product is [K, d]"),
    ("summed before", lambda x, g: torch.outer(g.sum((0, 1)), x.sum((0, 1))), "added up before"),
    ("g forgotten", lambda x, g: x.sum((0, 1)).expand(g.shape[2], -1), "is not used: this is"),
    ("downhill", lambda x, g: -_summed(x, g), "points uphill"),
    (
        "reshaped to rows",
        lambda x, g: g.reshape(g.shape[2], -1) @ x.flatten(0, 1),
        "a `reshape` that tears rows apart",
    ),
):
    embeds_back(_name, _fragment)(_back(_function))

for _name, _function, _fragment in (
    ("bias averaged", lambda x, g: g.mean((0, 1)), "bias's gradient is averaged"),
    ("bias averaged over images", lambda x, g: g.sum(1).mean(0), "bias's gradient is averaged"),
    ("bias of one image", lambda x, g: g[0].sum(0), "bias's gradient comes from one image"),
    ("bias counted", lambda x, g: 0 * g[0, 0] + g[:, :, 0].numel(), "bias's gradient counts"),
    ("bias from the weight", lambda x, g: _summed(x, g).sum(1), "has the weight's in it"),
    ("bias downhill", lambda x, g: -g.sum((0, 1)), "the sign of the bias's gradient is wrong"),
    ("bias kept per patch", lambda x, g: g.sum(0), "as dL/dbias it returned shape [5, 24]"),
):
    embeds_back(_name, _fragment)(_back(_summed, _function))


@embeds_back("times the weight", "the weight itself is in its gradient")
def _(x, weight, grad):
    return weight * _summed(x, grad).view_as(weight), grad.sum((0, 1))


@embeds_back("put back channels last", "put back with the channels behind rows or columns")
def _(x, weight, grad):
    d, c, rows, columns = weight.shape
    by_weight = _summed(x, grad).reshape(d, rows, columns, c).permute(0, 3, 1, 2)
    return by_weight, grad.sum((0, 1))


@embeds_back("put back columns first", "put back column by column")
def _(x, weight, grad):
    d, c, rows, columns = weight.shape
    return _summed(x, grad).reshape(d, c, columns, rows).mT, grad.sum((0, 1))


@embeds_back("parts exchanged", "as dL/dweight it returned shape [24];")
def _(x, weight, grad):
    return embed_backward_right(x, weight, grad)[::-1]


@embeds_back("one part", "returned a Tensor; expected two tensors")
def _(x, weight, grad):
    return embed_backward_right(x, weight, grad)[0]


@embeds_back("a matrix", "as dL/dweight it returned shape [24, 24]")
def _(x, weight, grad):
    return _summed(x, grad), grad.sum((0, 1))


@embeds_back("three parts", "returned a tuple of 3")
def _(x, weight, grad):
    return (*embed_backward_right(x, weight, grad), grad @ weight.flatten(1))


@embeds_back("nothing", "returned None")
def _(x, weight, grad):
    embed_backward_right(x, weight, grad)


def embed_package(x: Any, weight: Any, bias: Any) -> Any:
    """The package's, each patch an image."""
    b, m, _ = x.shape
    return patch_embedding(x.reshape(b * m, *weight.shape[1:]), weight, bias).view(b, m, -1)


def embed_backward_flat(x: Any, weight: Any, grad: Any) -> Any:
    """Both flattened to matrices; a list, and a bias by a product with ones."""
    g, p = grad.flatten(0, 1), x.flatten(0, 1)
    return [(g.T @ p).view_as(weight), g.T @ torch.ones(len(g))]


RIGHT["7.2"] = [
    ("a convolution; patch by patch", [embed_right, embed_backward_right]),
    ("the package's; matrices", [embed_package, embed_backward_flat]),
]


# 7.3 ---------------------------------------------------------------------------------

resizes = wrong("7.3", "resize")


def _there(table, old):
    return table[1:].reshape(*old, -1).permute(2, 0, 1)[None]


def _larger(picture, new, mode="bilinear", **options):
    return F.interpolate(picture, size=new, mode=mode, **options)


def _again(table, larger):
    return torch.cat([table[:1], larger[0].flatten(1).T])


@resizes("class token in the list", "interpolated with the others")
def _(table, old, new):
    return F.interpolate(table.T[None], 1 + new[0] * new[1], mode="linear")[0].T


@resizes("one long list", "the last of a row and the first of the next")
def _(table, old, new):
    longer = F.interpolate(table[1:].T[None], new[0] * new[1], mode="linear")
    return _again(table, longer)


@resizes("reshape on the way there", "the channels are torn to pieces")
def _(table, old, new):
    return _again(table, _larger(table[1:].reshape(1, -1, *old), new))


@resizes("reshape on the way back", "the channels are torn to pieces")
def _(table, old, new):
    larger = _larger(_there(table, old), new)
    return torch.cat([table[:1], larger.reshape(-1, table.shape[1])])


@resizes("reshape both ways", "the channels are torn to pieces")
def _(table, old, new):
    larger = _larger(table[1:].view(1, table.shape[1], *old), new)
    return torch.cat([table[:1], larger.view(-1, table.shape[1])])


@resizes("columns read as rows", "rows and columns have changed places. The table")
def _(table, old, new):
    picture = table[1:].reshape(old[1], old[0], -1).permute(2, 0, 1)[None]
    return _again(table, _larger(picture, (new[1], new[0])))


@resizes("transposed there", "rows and columns have changed places. The table")
def _(table, old, new):
    picture = table[1:].reshape(*old, -1).permute(2, 1, 0)[None]
    return _again(table, _larger(picture, new))


@resizes("transposed there, with its size", "rows and columns have changed places. The table")
def _(table, old, new):
    picture = table[1:].reshape(*old, -1).permute(2, 1, 0)[None]
    return _again(table, _larger(picture, new[::-1]))


@resizes("transposed back", "rows and columns have changed places. The table")
def _(table, old, new):
    return torch.cat(
        [table[:1], _larger(_there(table, old), new)[0].permute(2, 1, 0).flatten(0, 1)]
    )


@resizes("corners aligned", "the middles of the outermost patches")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, align_corners=True))


@resizes("nearest", "each new place takes over the row of one old place")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, "nearest"))


@resizes("nearest exact", "each new place takes over the row of one old place")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, "nearest-exact"))


@resizes("bicubic", "cubic, not linear")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, "bicubic"))


@resizes("bicubic, corners aligned", "cubic, not linear")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, "bicubic", align_corners=True))


@resizes("antialias", "several old places are averaged")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, antialias=True))


@resizes("area", "several old places are averaged")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new, "area"))


@resizes("class token at the end", "the class token's row is at the end")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new)).roll(-1, 0)


@resizes("the last row apart", "the last row is taken for the class token's")
def _(table, old, new):
    picture = table[:-1].reshape(*old, -1).permute(2, 0, 1)[None]
    return torch.cat([_larger(picture, new)[0].flatten(1).T, table[-1:]])


@resizes("zeros for the class token", "the class token has lost its row")
def _(table, old, new):
    return _again(torch.zeros(1, table.shape[1]), _larger(_there(table, old), new))


@resizes("the mean for the class token", "the class token has lost its row")
def _(table, old, new):
    return _again(table.mean(0, keepdim=True), _larger(_there(table, old), new))


@resizes("class token dropped", "which token is no patch")
def _(table, old, new):
    return _larger(_there(table, old), new)[0].flatten(1).T


@resizes("no gradient", "they have no gradient by `table`")
def _(table, old, new):
    return _again(table, _larger(_there(table, old), new)).detach()


@resizes("class token not apart", "your code raised RuntimeError")
def _(table, old, new):
    return _larger(table.reshape(*old, -1).permute(2, 0, 1)[None], new)[0].flatten(1).T


@resizes("a picture", "it returned shape [6, 7, 4]")
def _(table, old, new):
    return _larger(_there(table, old), new)[0].permute(1, 2, 0)


def resize_twice(table: Any, old: Any, new: Any) -> Any:
    """Down the columns, then along the rows, each a list; the rest is the batch."""
    grid = table[1:].unflatten(0, old)  # [rows, columns, d]
    down = F.interpolate(grid.permute(1, 2, 0), new[0], mode="linear")  # [columns, d, rows]
    across = F.interpolate(down.permute(2, 1, 0), new[1], mode="linear")  # [rows, d, columns]
    return torch.cat([table[0][None], across.transpose(1, 2).flatten(0, 1)])


def resize_sampled(table: Any, old: Any, new: Any) -> Any:
    """A grid of places to sample at, in [-1, 1]."""
    places = [(2 * torch.arange(n) + 1) / n - 1 for n in new]
    y, x = torch.meshgrid(*places, indexing="ij")
    sampled = F.grid_sample(
        _there(table, old), torch.stack([x, y], -1)[None],
        padding_mode="border", align_corners=False,
    )  # fmt: skip
    return torch.vstack([table[:1], sampled.flatten(2)[0].mT])


def resize_by_hand(table: Any, old: Any, new: Any) -> Any:
    """Place by place."""
    rows = [table[0]]
    for i in range(new[0]):
        for j in range(new[1]):
            row = 0
            y = min(max((i + 0.5) * old[0] / new[0] - 0.5, 0), old[0] - 1)
            x = min(max((j + 0.5) * old[1] / new[1] - 0.5, 0), old[1] - 1)
            for r in range(old[0]):
                for c in range(old[1]):
                    share = max(1 - abs(y - r), 0) * max(1 - abs(x - c), 0)
                    row = row + share * table[1 + r * old[1] + c]
            rows.append(row)
    return torch.stack(rows)


RIGHT["7.3"] = [
    ("one axis after the other", [resize_twice]),
    ("sampled", [resize_sampled]),
    ("place by place", [resize_by_hand]),
]


# 7.4 ---------------------------------------------------------------------------------

rolls = wrong("7.4", "rollout")


def _chain(layers, start=0):
    """The product, the last layer on the left."""
    product = torch.eye(layers.shape[-1])
    for layer in layers:
        product = layer @ product
    return product[start]


def _half(mean):
    return (mean + torch.eye(mean.shape[-1])) / 2


@rolls("first layer on the left", "multiplied in the other order")
def _(weights):
    result = torch.eye(weights.shape[-1])
    for layer in weights:
        result = result @ _half(layer.mean(0))
    return result[0]


@rolls("a row, from the first layer up", "multiplied in the other order")
def _(weights):
    row = torch.eye(weights.shape[-1])[0]
    for layer in weights:
        row = row @ _half(layer.mean(0))
    return row


@rolls("the last row, then from the first layer up", "multiplied in the other order")
def _(weights):
    mixed = _half(weights.mean(1))
    row = mixed[-1, 0]
    for layer in mixed[:-1]:
        row = row @ layer
    return row


@rolls("a row on the right", "takes it for a column")
def _(weights):
    mixed = _half(weights.mean(1))
    row = mixed[-1, 0]
    for layer in mixed[:-1].flip(0):
        row = layer @ row
    return row


@rolls("layers for heads", "heads are multiplied with each other")
def _(weights):
    return _chain(_half(weights.mean(0)))


@rolls("ones for the identity", "a half is added to every number")
def _(weights):
    return _chain(weights.mean(1) / 2 + torch.ones_like(weights[0, 0]) / 2)


@rolls("identity after the product", "the identity is added to the product")
def _(weights):
    identity = torch.eye(weights.shape[-1])
    result = identity
    for layer in weights:
        result = (layer.mean(0) @ result + identity) / 2
    return result[0]


@rolls("a column", "a column is read")
def _(weights):
    column = torch.eye(weights.shape[-1])[:, 0]
    for layer in weights:
        column = _half(layer.mean(0)) @ column
    return column


@rolls("no identity", "the identity is missing")
def _(weights):
    return _chain(weights.mean(1))


@rolls("no identity, halved", "the identity is missing")
def _(weights):
    return _chain(weights.mean(1) / 2)


@rolls("not halved", "the rows of a layer sum to more than one")
def _(weights):
    return _chain(weights.mean(1) + torch.eye(weights.shape[-1]))


@rolls("half halved", "the rows of a layer sum to more than one")
def _(weights):
    return _chain(weights.mean(1) / 2 + torch.eye(weights.shape[-1]))


@rolls("heads added up", "heads are added up")
def _(weights):
    return _chain(_half(weights.sum(1)))


@rolls("heads added up, rows normalised", "heads are added up")
def _(weights):
    mixed = weights.sum(1) + torch.eye(weights.shape[-1])
    return _chain(mixed / mixed.sum(2, keepdim=True))


@rolls("the largest head", "the largest of the heads' weights")
def _(weights):
    return _chain(_half(weights.max(1).values))


@rolls("the largest head, rows normalised", "the largest of the heads' weights")
def _(weights):
    mixed = _half(weights.amax(1))
    return _chain(mixed / mixed.sum(2, keepdim=True))


@rolls("the first head", "one head is followed")
def _(weights):
    return _chain(_half(weights[:, 0]))


@rolls("the last layer", "only one layer is looked at")
def _(weights):
    return _half(weights[-1].mean(0))[0]


@rolls("the last layer's weights", "only one layer is looked at")
def _(weights):
    return weights[-1].mean(0)[0]


@rolls("layers averaged", "the layers are averaged")
def _(weights):
    return weights.mean((0, 1))[0]


@rolls("the last layer twice", "a layer is missing, or counts twice")
def _(weights):
    mixed = _half(weights.mean(1))
    row = mixed[-1, 0]
    for layer in mixed.flip(0):
        row = row @ layer
    return row


@rolls("the first layer missing", "a layer is missing, or counts twice")
def _(weights):
    mixed = _half(weights.mean(1))
    row = mixed[-1, 0]
    for k in range(len(mixed) - 2, 0, -1):
        row = row @ mixed[k]
    return row


@rolls("identity twice", "the identity comes in twice")
def _(weights):
    mixed = _half(weights.mean(1))
    row = torch.eye(weights.shape[-1])[0]
    for layer in mixed.flip(0):
        row = row / 2 + row @ layer / 2
    return row


@rolls("identity at the end", "the identity is mixed in once")
def _(weights):
    row = torch.eye(weights.shape[-1])[0]
    return (_chain(weights.mean(1)) + row) / 2


@rolls("number by number", "matrices are multiplied number by number")
def _(weights):
    result = _half(weights[0].mean(0))
    for layer in weights[1:]:
        result = result * _half(layer.mean(0))
    return result[0]


@rolls("the last token", "this is another token's row")
def _(weights):
    return _chain(_half(weights.mean(1)), -1)


@rolls("the mean of all tokens", "this is another token's row")
def _(weights):
    return _chain(_half(weights.mean(1)), slice(None)).mean(0)


@rolls("without the class token, scaled", "own share is taken out")
def _(weights):
    row = _chain(_half(weights.mean(1)))
    row[0] = 0
    return row / row.sum()


@rolls("patches only", "it returned shape [4]")
def _(weights):
    return _chain(_half(weights.mean(1)))[1:]


@rolls("the whole matrix", "it returned shape [5, 5]")
def _(weights):
    return _chain(_half(weights.mean(1)), slice(None))


@rolls("in place", "it changes its argument `weights`")
def _(weights):
    weights += torch.eye(weights.shape[-1])
    return _chain(weights.mean(1) / 2)


def rollout_package(weights: Any) -> Any:
    """The package's, for one image."""
    return class_rollout(weights[None])[0]


def rollout_product(weights: Any) -> Any:
    """The whole product; rows normalised instead of halved; NumPy."""
    layers = [layer.mean(0) + np.eye(layer.shape[-1]) for layer in weights.numpy()]
    layers = [layer / layer.sum(1, keepdims=True) for layer in layers]
    product = layers[0]
    for layer in layers[1:]:
        product = layer @ product
    return torch.from_numpy(product[0])


def rollout_paths(weights: Any) -> Any:
    """A row goes around a layer or through one of its heads; from the last layer down."""
    row = F.one_hot(torch.tensor(0), weights.shape[-1]).to(weights)
    for layer in reversed(weights):
        row = (row + sum(row @ head for head in layer) / len(layer)) / 2
    return row


RIGHT["7.4"] = [
    ("the package's", [rollout_package]),
    ("the whole product", [rollout_product]),
    ("head by head", [rollout_paths]),
]


# 7.5 ---------------------------------------------------------------------------------

pools = wrong("7.5", "pool")


def _is_real(tokens, counts):
    return (torch.arange(tokens.shape[1] - 1) < counts[:, None])[:, :, None]


def _masked(tokens, counts, value=0.0):
    return tokens[:, 1:].masked_fill(~_is_real(tokens, counts), value)


def _average(tokens, counts):
    return _masked(tokens, counts).sum(1) / counts[:, None]


for _name, _function, _fragment in (
    ("class token averaged in", lambda t, n: (t[:, 0] + _masked(t, n).sum(1)) / (n + 1)[:, None],
     "the class token is averaged in"),
    ("class token added in", lambda t, n: (t[:, 0] + _masked(t, n).sum(1)) / n[:, None],
     "the class token is averaged in"),
    ("mean of all tokens", lambda t, n: t.mean(1), "the class token is averaged in"),
    ("mean of all patches", lambda t, n: t[:, 1:].mean(1), "padding is counted"),
    ("divided by m", lambda t, n: _masked(t, n).mean(1), "how many patches there is room for"),
    ("divided by all tokens", lambda t, n: _masked(t, n).sum(1) / t.shape[1],
     "how many patches there is room for"),
    ("times the mask", lambda t, n: (t[:, 1:] * _is_real(t, n)).sum(1) / n[:, None],
     "0 * NaN is NaN, and 0 * inf"),
    ("nanmean", lambda t, n: t[:, 1:].nanmean(1), "NaN is left out of the mean"),
    ("not divided", lambda t, n: _masked(t, n).sum(1), "not divided by anything"),
    ("one more in the divisor", lambda t, n: _masked(t, n).sum(1) / (n + 1)[:, None],
     "one patch too few is counted"),
    ("one too many", lambda t, n: _masked(t, n + 1).sum(1) / n[:, None],
     "one patch too few is counted"),
    ("tokens held against counts", lambda t, n: _masked(t, n - 1).sum(1) / n[:, None],
     "one patch too few is counted"),
    ("as many as the longest", lambda t, n: t[:, 1 : 1 + n.max()].mean(1),
     "the same number of patches"),
    ("over the channels", lambda t, n: t[:, 1:].mean(-1), "runs over the channels of each patch"),
    ("mask inverted", lambda t, n: t[:, 1:].masked_fill(_is_real(t, n), 0).sum(1) / n[:, None],
     "the mask is the wrong way round"),
    ("minus infinity", lambda t, n: _masked(t, n, -torch.inf).mean(1),
     "the largest number of each"),
    ("maximum", lambda t, n: _masked(t, n, -torch.inf).amax(1), "the largest number of each"),
    ("class token twice", lambda t, n: t[:, 0], "the second of the two is a token as it is"),
):  # fmt: skip
    pools(_name, _fragment)(lambda t, n, mean=_function: (t[:, 0], mean(t, n)))

for _name, _function, _fragment in (
    ("the last token", lambda t, n: t[:, -1], "another token is taken for the class token"),
    ("the first patch", lambda t, n: t[:, 1], "another token is taken for the class token"),
    ("the first image", lambda t, n: t[0], "these are the tokens of one image"),
    ("a channel", lambda t, n: t[:, 1:, 0], "one channel of every token"),
    ("kept as one token", lambda t, n: t[:, :1], "as the class token it returned shape [5, 1, 4]"),
):
    pools(_name, _fragment)(lambda t, n, first=_function: (first(t, n), _average(t, n)))

pools("exchanged", "the first of the two is a mean")(lambda t, n: (_average(t, n), t[:, 0]))
pools("exchanged, and averaged in", "the first of the two is a mean")(
    lambda t, n: (t.mean(1), t[:, 0])
)
pools("one of the two", "expected two tensors, the class token and the mean")(
    lambda t, n: _average(t, n)
)


@pools("padding overwritten", "it changes its argument `tokens`")
def _(tokens, counts):
    patches = tokens[:, 1:]
    patches[(torch.arange(patches.shape[1]) >= counts[:, None])] = 0
    return tokens[:, 0], patches.sum(1) / counts[:, None]


def pool_loop(tokens: Any, counts: Any) -> Any:
    """Image by image; a list."""
    means = [image[1 : n + 1].mean(0) for image, n in zip(tokens, counts, strict=True)]
    return [tokens.select(1, 0), torch.stack(means)]


def pool_where(tokens: Any, counts: Any) -> Any:
    """Weights as in attention, with what is not real replaced first."""
    first, patches = tokens.split([1, tokens.shape[1] - 1], 1)
    real = torch.arange(patches.shape[1])[None] < counts[:, None]
    weights = real / real.sum(1, keepdim=True)
    clean = torch.where(real[..., None], patches, torch.zeros(()))
    return first.squeeze(1), torch.einsum("bm,bmd->bd", weights, clean)


def pool_nanmean(tokens: Any, counts: Any) -> Any:
    """What is not real becomes NaN, and is left out."""
    return tokens[:, 0], _masked(tokens, counts, torch.nan).nanmean(1)


RIGHT["7.5"] = [
    ("image by image", [pool_loop]),
    ("weights", [pool_where]),
    ("nanmean, of what was made NaN", [pool_nanmean]),
]


# 7.6 ---------------------------------------------------------------------------------


@triton.jit
def _flexible(
    image_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr,
    GRID_H: tl.constexpr, GRID_W: tl.constexpr, CHANNELS: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, KIND: tl.constexpr,
):  # fmt: skip
    """The kernel with one of several faults."""
    K: tl.constexpr = CHANNELS * PH * PW
    TOKENS: tl.constexpr = 1 + GRID_H * GRID_W
    WIDTH: tl.constexpr = GRID_W * PW
    t, c = tl.program_id(0), tl.program_id(1)
    if KIND == "program's axes exchanged":
        t, c = c, t
    tokens = t * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = c * BLOCK_N + tl.arange(0, BLOCK_N)
    patch = tokens - 1
    has_patch = (tokens > 0) & (tokens < TOKENS)
    if KIND == "token for patch, within the grid":
        patch = tokens
        has_patch = (tokens > 0) & (tokens < TOKENS - 1)
    if KIND == "token for patch":
        patch = tokens
    if KIND == "class token's pixels read":
        has_patch = tokens < TOKENS
    if KIND == "tokens not masked":
        has_patch = tokens > 0

    down, across = patch // GRID_W, patch % GRID_W
    if KIND == "grid down its columns":
        down, across = patch % GRID_H, patch // GRID_H
    if KIND == "grid's sides exchanged":
        down, across = patch // GRID_H, patch % GRID_H
    corner = down * PH * WIDTH + across * PW
    if KIND == "rows as wide as a patch" or KIND == "corners in rows as wide as a patch":
        corner = down * PH * PW + across * PW
    if KIND == "patch height forgotten":
        corner = down * WIDTH + across * PW
    if KIND == "patch width forgotten":
        corner = down * PH * WIDTH + across
    if KIND == "patches behind each other":
        corner = patch * K

    total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    exists = columns < DIM
    if KIND == "columns not masked":
        exists = columns >= 0
    bias = tl.load(bias_ptr + columns, mask=exists, other=0.0)
    first = tl.load(class_ptr + columns, mask=exists, other=0.0)
    both = (tokens < TOKENS)[:, None] & exists[None, :]
    where = tokens[:, None] * DIM + columns[None, :]
    place = where
    if KIND == "position of the patch":
        place = tl.maximum(patch, 0)[:, None] * DIM + columns[None, :]
    if KIND == "position of one place":
        place = 0 * tokens[:, None] + columns[None, :]
    position = tl.load(position_ptr + place, mask=both, other=0.0)
    STOP: tl.constexpr = BLOCK_K if KIND == "one step" else K
    STEP: tl.constexpr = 1 if KIND == "steps of one" else BLOCK_K
    for start in range(0, STOP, STEP):
        k = start + tl.arange(0, BLOCK_K)
        channel, inside = k // (PH * PW), k % (PH * PW)
        if KIND == "channels last":
            channel, inside = k % CHANNELS, k // CHANNELS
        row, column = inside // PW, inside % PW
        if KIND == "patch down its columns":
            row, column = inside % PH, inside // PH
        if KIND == "patch's sides exchanged":
            row, column = inside // PH, inside % PH
        if KIND == "rows as wide as a patch" or KIND == "rows of a patch together":
            within = channel * (GRID_H * PH * WIDTH) + row * PW + column
        elif KIND == "channels as large as a patch":
            within = channel * (PH * PW) + row * WIDTH + column
        elif KIND == "channels forgotten":
            within = row * WIDTH + column
        elif KIND == "pixels behind each other" or KIND == "patches behind each other":
            within = k
        else:
            within = channel * (GRID_H * PH * WIDTH) + row * WIDTH + column
        known = k < K
        if KIND == "numbers not masked":
            known = k >= 0
        pixels = image_ptr + corner[:, None] + within[None, :]
        if KIND == "no other":
            x = tl.load(pixels, mask=has_patch[:, None] & known[None, :])
        else:
            x = tl.load(pixels, mask=has_patch[:, None] & known[None, :], other=0.0)
        weights = weight_ptr + columns[None, :] * K + k[:, None]
        if KIND == "weight on its side":
            weights = weight_ptr + k[:, None] * DIM + columns[None, :]
        if KIND == "weight's numbers not masked":
            known = k >= 0
        e = tl.load(weights, mask=known[:, None] & exists[None, :], other=0.0)
        product = tl.sum(x[:, :, None] * e[None, :, :], 1)
        if KIND == "last step":
            total = product
        else:
            total += product
        if KIND == "bias in the loop" or KIND == "both in the loop":
            total += bias[None, :]
        if KIND == "position in the loop" or KIND == "both in the loop":
            total += position

    is_class = (tokens == 0)[:, None]
    if KIND == "first row of each tile":
        is_class = (tl.arange(0, BLOCK_M) == 0)[:, None]
    if KIND == "bias in the loop" or KIND == "both in the loop" or KIND == "no bias":
        total = tl.where(is_class, first[None, :], total)
    elif KIND == "bias for the class token":
        total = tl.where(is_class, first[None, :] + bias[None, :], total + bias[None, :])
    elif KIND == "no class token":
        total = total + bias[None, :]
    elif KIND == "class token a row of zeros":
        total = tl.where(is_class, 0.0, total + bias[None, :])
    elif KIND == "class token everywhere":
        total = total + bias[None, :] + first[None, :]
    elif KIND == "position in the loop":
        total = tl.where(is_class, first[None, :] + position, total + bias[None, :])
    else:
        total = tl.where(is_class, first[None, :], total + bias[None, :])
    if KIND == "no position for the class token":
        total = total + tl.where(is_class, 0.0, position)
    elif KIND == "both in the loop":
        total = tl.where(is_class, total + position, total)
    elif KIND != "no position" and KIND != "position in the loop":
        total = total + position
    if KIND == "whole tiles stored":
        tl.store(output_ptr + where, total)
    elif KIND == "columns stored unmasked":
        rows = (tokens < TOKENS)[:, None] & (columns >= 0)[None, :]
        tl.store(output_ptr + where, total, mask=rows)
    elif KIND == "class token not stored":
        tl.store(output_ptr + where, total, mask=both & (tokens > 0)[:, None])
    elif KIND == "stored over the positions":
        tl.store(position_ptr + where, total, mask=both)
    else:
        tl.store(output_ptr + where, total, mask=both)


class _Kernel:
    """Launched as a kernel is, with a constant that the check does not know of."""

    def __init__(self, kind: str) -> None:
        self.__name__, self.kind = "patch_kernel", kind
        self.fn = SimpleNamespace(__name__="patch_kernel")

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., Any]:
        return lambda *given: _flexible[grid](*given, KIND=self.kind)


WRONG["7.6"] = [
    (kind, _Kernel(kind), fragment)
    for kind, fragment in {
        "program's axes exchanged": "an output that is not its own",
        "token for patch, within the grid": "the first patch is nowhere",
        "token for patch": "reads past the end of its tensor",
        "class token's pixels read": "reads past the end of its tensor",
        "tokens not masked": "reads past the end of its tensor",
        "grid down its columns": "numbered down the columns of the grid; or",
        "grid's sides exchanged": "numbered down the columns of the grid; or",
        "rows as wide as a patch": "as long as a row of a patch",
        "corners in rows as wide as a patch": "as long as a row of a patch",
        "rows of a patch together": "as long as a row of a patch",
        "patch height forgotten": "one of the two is lost",
        "patch width forgotten": "one of the two is lost",
        "patches behind each other": "one behind the other in memory",
        "pixels behind each other": "one behind the other in memory",
        "columns not masked": "reads past the end of its tensor",
        "numbers not masked": "reads past the end of its tensor",
        "weight's numbers not masked": "reads past the end of its tensor",
        "position of the patch": "has the position of the token before it",
        "position of one place": "the position of one and the same place",
        "one step": "only the first BLOCK_K numbers",
        "steps of one": "numbers of a patch count more than once",
        "last step": "only the last step counts",
        "channels last": "every channel is read from a wrong place",
        "channels as large as a patch": "every channel is read from a wrong place",
        "channels forgotten": "every channel is read from a wrong place",
        "patch down its columns": "are numbered down its columns; or PH and PW",
        "patch's sides exchanged": "are numbered down its columns; or PH and PW",
        "no other": "Lanes that a mask leaves out",
        "weight on its side": "the weight is read on its side",
        "bias in the loop": "is added in every step of the loop",
        "position in the loop": "is added in every step of the loop",
        "both in the loop": "is added in every step of the loop",
        "first row of each tile": "in each tile the first row gets the class token",
        "no bias": "the bias is missing",
        "bias for the class token": "the class token gets a bias",
        "no class token": "row 0 has no class token",
        "class token a row of zeros": "row 0 has no class token",
        "class token everywhere": "the class token is added to every token",
        "no position": "the positions are missing",
        "no position for the class token": "the positions are missing",
        "whole tiles stored": "an output that is not its own",
        "columns stored unmasked": "an output that is not its own",
        "class token not stored": "is never written",
        "stored over the positions": "an input is not what it was before",
    }.items()
]


@triton.jit
def row_by_row(
    image_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr,
    GRID_H: tl.constexpr, GRID_W: tl.constexpr, CHANNELS: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One token of the tile after the other; the sum begins with the epilogue."""
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    exists = columns < DIM
    for i in range(BLOCK_M):
        token = tl.program_id(0) * BLOCK_M + i
        if token <= GRID_H * GRID_W:
            total = tl.load(position_ptr + token * DIM + columns, mask=exists)
            if token == 0:
                total += tl.load(class_ptr + columns, mask=exists)
            else:
                total += tl.load(bias_ptr + columns, mask=exists)
                top, left = (token - 1) // GRID_W * PH, (token - 1) % GRID_W * PW
                for k in range(CHANNELS * PH * PW):
                    row = top + k // PW % PH + k // (PH * PW) * GRID_H * PH
                    pixel = tl.load(image_ptr + row * GRID_W * PW + left + k % PW)
                    of = weight_ptr + columns * (CHANNELS * PH * PW) + k
                    total += pixel * tl.load(of, mask=exists, other=0.0)
            tl.store(output_ptr + token * DIM + columns, total, mask=exists)


@triton.jit
def transposed(
    image_ptr, weight_ptr, bias_ptr, class_ptr, position_ptr, output_ptr,
    GRID_H: tl.constexpr, GRID_W: tl.constexpr, CHANNELS: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, DIM: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Tiles of columns by tokens; what does not exist is read at 0 and replaced afterwards."""
    K: tl.constexpr = CHANNELS * PH * PW
    token = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
    column = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N))[:, None]
    is_patch = (token >= 1) & (token <= GRID_H * GRID_W)
    patch = tl.where(is_patch, token - 1, 0)
    safe = tl.where(column < DIM, column, 0)
    total = tl.where(is_patch, tl.load(bias_ptr + safe), tl.load(class_ptr + safe))
    for step in range((K + BLOCK_K - 1) // BLOCK_K):
        k = step * BLOCK_K + tl.arange(0, BLOCK_K)
        real, k = k < K, tl.where(k < K, k, 0)
        y = patch // GRID_W * PH + (k // PW % PH + k // (PH * PW) * (GRID_H * PH))[:, None]
        x = patch % GRID_W * PW + (k % PW)[:, None]
        pixels = tl.load(image_ptr + y * (GRID_W * PW) + x)  # [BLOCK_K, BLOCK_M]
        pixels = tl.where(real[:, None] & is_patch, pixels, 0.0)
        weights = tl.load(weight_ptr + safe * K + k[None, :])  # [BLOCK_N, BLOCK_K]
        total += tl.sum(weights[:, :, None] * pixels[None, :, :], 1)
    inside = (column < DIM) & (token <= GRID_H * GRID_W)
    total += tl.load(position_ptr + token * DIM + column, mask=inside, other=0.0)
    tl.store(output_ptr + token * DIM + column, total, mask=inside)


RIGHT["7.6"] = [
    ("token by token", [row_by_row]),
    ("tiles transposed, no masks within", [transposed]),
    ("all loads before the loop", [_Kernel("")]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (cases._PATCH_CASES, cases._patches, mistakes._PATCH_MISTAKES),
    (cases._EMBED_CASES, cases._embed, mistakes._EMBED_MISTAKES),
    (cases._EMBED_BACKWARD_CASES, checks._by_weight, mistakes._DKERNEL_MISTAKES),
    (cases._EMBED_BACKWARD_CASES, checks._by_bias, mistakes._DBIAS_MISTAKES),
    (cases._RESIZE_CASES, cases._resize, mistakes._RESIZE_MISTAKES),
    (cases._ROLLOUT_CASES, cases._rollout, mistakes._ROLLOUT_MISTAKES),
    (cases._POOL_CASES, cases._class_token, mistakes._CLASS_MISTAKES),
    (cases._POOL_CASES, cases._mean_patch, mistakes._MEAN_MISTAKES),
    (cases._IMAGE_CASES, cases._patch_tokens, mistakes._IMAGE_MISTAKES),
]
