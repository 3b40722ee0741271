"""The public operations: validation, and the choice between implementations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course import _triton
from attn_course._precision import wide_dtype
from attn_course._validation import (
    check_choice,
    check_counts,
    check_floating,
    check_ids,
    check_together,
)
from attn_course.vision import reference

IMPLEMENTATIONS = ("auto", "reference", "conv", "triton")

#: Height and width, or one number for both.
Size = int | Sequence[int]


def as_pair(name: str, size: Size) -> tuple[int, int]:
    """Height and width of ``size``.

    Raises:
        TypeError: It is neither an integer nor two of them.
        ValueError: One is below 1.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        size = (size, size)
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise TypeError(f"{name} must be an integer or (height, width), got {size!r}.")
    height, width = size
    for side in (height, width):
        if isinstance(side, bool) or not isinstance(side, int):
            raise TypeError(f"{name} must hold integers, got {size!r}.")
        check_counts(**{name: side})
    return height, width


def make_grid(
    name: str, image_size: tuple[int, int], patch_size: tuple[int, int]
) -> tuple[int, int]:
    """Rows and columns of the patches that an image is cut into.

    Raises:
        ValueError: An image is smaller than a patch, or is no whole number of them.
    """
    height, width = image_size
    patch_height, patch_width = patch_size
    about = f"got {height} x {width} for patches of {patch_height} x {patch_width}"
    if height < patch_height or width < patch_width:
        raise ValueError(f"{name} must be at least as large as a patch, {about}.")
    if height % patch_height or width % patch_width:
        raise ValueError(
            f"{name} must be a whole number of patches high and wide, {about}: crop, pad or "
            "resize the images first."
        )
    return height // patch_height, width // patch_width


def patchify(images: Tensor, patch_size: Size) -> Tensor:
    """Cut images into patches, and lay each of them out as a row.

    Patches come row by row over the image. Within a patch, channel by channel, then row by
    row: the order in which the weights of a convolution are flattened.

    Args:
        images: ``[batch, channels, height, width]``.
        patch_size: Of a patch, one number or (height, width).

    Returns:
        ``[batch, patches, channels * patch height * patch width]``.

    Raises:
        TypeError: ``images`` is no tensor of floating-point numbers, or ``patch_size`` is
            not an integer or a pair of them.
        ValueError: A shape is out of place, or the image is no whole number of patches.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, section 3.1.

    Example:
        >>> image = torch.arange(8.0).view(1, 1, 2, 4)
        >>> image[0, 0]
        tensor([[0., 1., 2., 3.],
                [4., 5., 6., 7.]])
        >>> patchify(image, (2, 2))[0]
        tensor([[0., 1., 4., 5.],
                [2., 3., 6., 7.]])
    """
    patch_height, patch_width = as_pair("patch_size", patch_size)
    check_images(images)
    make_grid("images", (images.shape[2], images.shape[3]), (patch_height, patch_width))
    return reference.patchify(images, patch_height, patch_width)


def patch_embedding(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    position: Tensor | None = None,
    class_token: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Turn images into tokens: each patch x becomes W x + b + its position.

    The class token comes before the patches: a vector that stands for no patch, and only has
    its position added.

    Args:
        images: ``[batch, channels, height, width]``.
        weight: A convolution's, ``[embed_dim, channels, patch_height, patch_width]``.
        bias: ``[embed_dim]``, or ``None`` for none.
        position: A vector for each token, ``[patches, embed_dim]``, with a class token
            ``[1 + patches, embed_dim]``; or ``None`` for none.
        class_token: ``[embed_dim]``, or ``None`` for none.
        impl: Which implementation:

            ============= ======================================================
            ``reference`` PyTorch: ``patchify``, then a linear map
            ``conv``      PyTorch: a convolution with the patch as its stride
            ``triton``    GPU kernel that reads the patches where they lie in the
                          image (interpreted where there is no GPU: slow); float64
                          where interpreted only; can be differentiated once
            ``auto``      on CUDA ``conv``, else ``reference``
            ============= ======================================================

    Returns:
        ``[batch, tokens, embed_dim]``, of the type of ``images``, where there are as many
        tokens as patches, and one more with a class token. Half precision is added up in
        float32.

    Raises:
        TypeError: A tensor does not hold floating-point numbers, or float64 where the kernel
            cannot take it.
        ValueError: A shape or a name is out of place, or the images are no whole number of
            patches.
        RuntimeError: ``impl="triton"`` cannot be had here; the message says why.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, equation 1.

    Example:
        >>> images, weight = torch.rand(2, 3, 8, 12), torch.rand(5, 3, 4, 4)
        >>> patch_embedding(images, weight).shape
        torch.Size([2, 6, 5])
        >>> position, class_token = torch.rand(7, 5), torch.rand(5)
        >>> tokens = patch_embedding(images, weight, position=position, class_token=class_token)
        >>> torch.equal(tokens[1, 0], class_token + position[0])
        True
    """
    _check(images, weight, bias, position, class_token)
    check_choice("impl", impl, IMPLEMENTATIONS)
    if impl == "triton":
        _triton.require(images.device)
        _triton.require_dot(images.dtype)
        from attn_course.vision import backward_kernel as gpu

        return gpu.patch_embedding(images, weight, bias, position, class_token)
    convolve = impl == "conv" or (impl == "auto" and images.is_cuda)
    embed = reference.convolution if convolve else reference.patch_embedding
    if images.dtype.itemsize > 2 or (convolve and images.is_cuda):  # cuDNN adds up in float32
        return embed(images, weight, bias, position, class_token)
    given = (images, weight, bias, position, class_token)
    exact: list[Tensor | None] = [None if tensor is None else tensor.float() for tensor in given]
    return embed(*exact).to(images.dtype)  # type: ignore[arg-type]


def resize_positions(
    position: Tensor,
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    has_class: bool = True,
) -> Tensor:
    """Interpolate learned positions to another number of patches.

    Positions lie on a grid, as their patches do, and are interpolated over it in both
    directions (bicubic). That of the class token lies nowhere, and stays.

    Args:
        position: ``[tokens, embed_dim]``: one for the class token if there is any, then row
            by row over the grid.
        old_grid: Rows and columns that they are for.
        new_grid: Rows and columns that are wanted.
        has_class: Whether the first is that of a class token.

    Returns:
        ``[tokens of the new grid, embed_dim]``, of the type of ``position``.

    Raises:
        TypeError: ``position`` does not hold floating-point numbers, or a grid no integers.
        ValueError: A shape is out of place.

    Reference:
        Dosovitskiy et al. (2021), An image is worth 16x16 words, section 3.2.

    Example:
        >>> position = torch.tensor([[9.0], [0.0], [1.0]])  # class token, left, right
        >>> resize_positions(position, (1, 2), (1, 4)).T
        tensor([[ 9.0000, -0.1055,  0.2266,  0.7734,  1.1055]])
    """
    rows, columns = as_pair("old_grid", old_grid)
    new_rows, new_columns = as_pair("new_grid", new_grid)
    check_floating("position", position)
    tokens = rows * columns + has_class
    if position.ndim != 2 or position.shape[0] != tokens:
        raise ValueError(
            f"position must have shape [{tokens}, embed_dim], for a grid of {rows} x {columns} "
            f"{'and' if has_class else 'without'} a class token, got {list(position.shape)}."
        )
    if (rows, columns) == (new_rows, new_columns):
        return position
    first, grid = position[: int(has_class)], position[int(has_class) :]
    compute = wide_dtype(position.dtype)
    maps = grid.mT.unflatten(1, (rows, columns)).unsqueeze(0).to(compute)
    maps = F.interpolate(maps, (new_rows, new_columns), mode="bicubic", align_corners=False)
    return torch.cat([first, maps[0].flatten(1).mT.to(position.dtype)])


def occlude(images: Tensor, patch_size: Size, patches: Tensor, fill: float = 0.0) -> Tensor:
    """Paint some patches over: what does the answer do without them?

    Args:
        images: ``[batch, channels, height, width]``.
        patch_size: Of a patch, one number or (height, width).
        patches: Their numbers, row by row from 0, ``[batch, count]``, or ``[count]`` for the
            same in all images.
        fill: What to paint.

    Returns:
        A copy, ``[batch, channels, height, width]``.

    Raises:
        TypeError: ``patches`` does not hold integers; otherwise as in ``patchify``.
        ValueError: There is no such patch; otherwise as in ``patchify``.

    Example:
        >>> occlude(torch.ones(1, 1, 2, 4), (2, 2), torch.tensor([1]))[0, 0]
        tensor([[1., 1., 0., 0.],
                [1., 1., 0., 0.]])
    """
    patch_height, patch_width = as_pair("patch_size", patch_size)
    check_images(images)
    batch, _, height, width = images.shape
    rows, columns = make_grid("images", (height, width), (patch_height, patch_width))
    if isinstance(patches, Tensor) and patches.ndim == 1:
        patches = patches.expand(batch, -1)
    if isinstance(patches, Tensor) and patches.ndim == 2 and patches.shape[1] == 0:
        return images.clone()
    check_ids("patches", patches, (batch, "count"), rows * columns)
    painted = torch.zeros(batch, rows * columns, dtype=torch.bool, device=images.device)
    painted.scatter_(1, patches.to(images.device, torch.int64), True)
    painted = painted.view(batch, 1, rows, 1, columns, 1)
    painted = painted.expand(-1, -1, -1, patch_height, -1, patch_width)
    return images.masked_fill(painted.reshape(batch, 1, height, width), fill)


def check_images(images: object) -> None:
    """Raise unless ``images`` is ``[batch, channels, height, width]``, in floating point."""
    check_floating("images", images)
    assert isinstance(images, Tensor)
    if images.ndim != 4:
        raise ValueError(
            f"images must have shape [batch, channels, height, width], got {list(images.shape)}."
        )


def _check(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor | None,
    class_token: Tensor | None,
) -> None:
    check_images(images)
    check_floating("weight", weight)
    if weight.ndim != 4 or 0 in weight.shape:
        raise ValueError(
            "weight must have shape [embed_dim, channels, patch_height, patch_width], "
            f"got {list(weight.shape)}."
        )
    embed_dim, channels, patch_height, patch_width = weight.shape
    if images.shape[1] != channels:
        raise ValueError(
            f"images must have {channels} channels, as weight has, got {images.shape[1]}: "
            f"shape {list(images.shape)}."
        )
    size = images.shape[2], images.shape[3]
    rows, columns = make_grid("images", size, (patch_height, patch_width))
    tokens = rows * columns + (class_token is not None)
    given = {"images": images, "weight": weight}
    shapes = {"bias": (embed_dim,), "class_token": (embed_dim,), "position": (tokens, embed_dim)}
    for name, tensor in (("bias", bias), ("class_token", class_token), ("position", position)):
        if tensor is None:
            continue
        check_floating(name, tensor)
        if tuple(tensor.shape) != shapes[name]:
            why = (
                f", a vector for each of {rows} x {columns} patches"
                f"{' and the class token' if class_token is not None else ''}"
            )
            raise ValueError(
                f"{name} must have shape {list(shapes[name])}{why if name == 'position' else ''}, "
                f"got {list(tensor.shape)}."
            )
        given[name] = tensor
    check_together(**given)
