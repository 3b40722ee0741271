"""Answers to chapter 1's exercises: wrong ones, as students write them, and right ones."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from attn_course.exercises import kernel_regression as checks
from attn_course.exercises import tl, triton
from attn_course.kernel_regression import kernel_regression, leave_one_out
from tests.exercises.answers import Table, new_answers

WRONG, RIGHT, wrong = new_answers()


# 1.1 ---------------------------------------------------------------------------------

boxcar = wrong("1.1", "boxcar_regression")


@boxcar("no neighbour gives NaN", "comes out as NaN")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    return (near / near.sum(1, keepdim=True)) @ value


@boxcar("no neighbour gives the mean of everything", "gets the mean of all values")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    near[near.sum(1) == 0] = 1
    return (near / near.sum(1, keepdim=True)) @ value


@boxcar("normalised over queries", "sum to one over the queries")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    return (near / near.sum(0).clamp_min(1)) @ value


@boxcar("normalised over queries, 0/0 left in", "sum to one over the queries")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    return (near / near.sum(dim=0, keepdim=True)) @ value


@boxcar("sum, not average", "added up, not averaged")
def _(query, key, value, width):
    return ((query[:, None] - key).abs() < width).float() @ value


@boxcar("divided by the number of all keys", "divided by the number of all keys")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    return (near * value).mean(1)


@boxcar("distance without its absolute value", "on one side of the query")
def _(query, key, value, width):
    near = (query[:, None] - key < width).float()
    return near @ value / near.sum(1).clamp_min(1)


@boxcar("half a window", "half as wide")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width / 2).float()
    return near @ value / near.sum(1).clamp_min(1)


@boxcar("squared distance against width", "squared distance is compared")
def _(query, key, value, width):
    near = ((query[:, None] - key) ** 2 < width).float()
    return near @ value / near.sum(1).clamp_min(1)


@boxcar("comparison the wrong way round", "outside the window count")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() > width).float()
    return near @ value / near.sum(1).clamp_min(1)


@boxcar("nothing returned", "returned None")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    near @ value / near.sum(1).clamp_min(1)


@boxcar("keys as rows", "Which axis")
def _(query, key, value, width):
    near = ((query[:, None] - key).abs() < width).float()
    return near.T @ near @ value


def boxcar_loop(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    out = []
    for q in query.tolist():
        inside = [
            v for k, v in zip(key.tolist(), value.tolist(), strict=True) if abs(q - k) < width
        ]
        out.append(sum(inside) / len(inside) if inside else 0.0)
    return torch.tensor(out, dtype=torch.float64)


def boxcar_package(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    column = [x[:, None] for x in (query, key, value)]
    return kernel_regression(*column, kernel="boxcar", width=width)[:, 0]


def boxcar_closed(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    near = (query.unsqueeze(1) - key) ** 2 <= width**2
    mean = torch.where(near, value, 0).sum(1) / near.sum(1)
    return torch.nan_to_num(mean, nan=0.0)


RIGHT["1.1"] = [
    ("a loop over lists, float64", [boxcar_loop]),
    ("the package", [boxcar_package]),
    ("<= for <, 0/0 repaired afterwards", [boxcar_closed]),
]


# 1.2 ---------------------------------------------------------------------------------

weighs = wrong("1.2", "gaussian_weights")
narrows = wrong("1.2", "narrow_limit")
widens = wrong("1.2", "wide_limit")


@weighs("sigma for sigma squared", "sigma for sigma squared")
def _(query, key, width):
    return torch.softmax(-((query[:, None] - key) ** 2) / (2 * width), dim=1)


@weighs("the half forgotten", "narrower than it should be")
def _(query, key, width):
    return torch.softmax(-(((query[:, None] - key) / width) ** 2), dim=1)


@weighs("softmax over the queries", "sum to one over the queries")
def _(query, key, width):
    return torch.softmax(-(((query[:, None] - key) / width) ** 2) / 2, dim=0)


@weighs("not normalised", "not yet weights")
def _(query, key, width):
    return torch.exp(-(((query[:, None] - key) / width) ** 2) / 2)


@weighs("sign of the exponent", "the farther a key is")
def _(query, key, width):
    return torch.softmax(((query[:, None] - key) / width) ** 2 / 2, dim=1)


@weighs("distance not squared", "a bell, or a tent")
def _(query, key, width):
    return torch.softmax(-((query[:, None] - key) / width).abs() / 2, dim=1)


@narrows("limits exchanged, narrow", "mean of all values: the limits")
def _(query, key, value):
    return value.mean().repeat(len(query))


@narrows("the key for the value", "a key, not a value")
def _(query, key, value):
    return key[torch.cdist(query[:, None], key[:, None]).argmin(1)]


@narrows("all weights vanish", "Every kernel value does shrink")
def _(query, key, value):
    return torch.zeros_like(query)


@narrows("farthest for nearest", "the farthest key")
def _(query, key, value):
    return value[torch.cdist(query[:, None], key[:, None]).argmax(1)]


@narrows("difference for distance", "without its sign")
def _(query, key, value):
    return value[(query[:, None] - key).argmin(1)]


@widens("limits exchanged, wide", "nearest key: the limits")
def _(query, key, value):
    return value[torch.cdist(query[:, None], key[:, None]).argmin(1)]


@widens("sum, not average", "the sum of the values")
def _(query, key, value):
    return torch.ones(len(query), len(key)) @ value


@widens("divided by the number of queries", "divided by the number of queries")
def _(query, key, value):
    return (value.sum() / len(query)).repeat(len(query))


@widens("all weights vanish at the wide end", "Do the weights really vanish")
def _(query, key, value):
    return torch.zeros_like(query)


@widens("one number for all queries", "returned shape []")
def _(query, key, value):
    return value.mean()


def weights_by_exp(query: Tensor, key: Tensor, width: float) -> Tensor:
    phi = torch.exp(-0.5 * (query.double()[:, None] - key.double()).div(width).square())
    return (phi / phi.sum(dim=1, keepdim=True)).float()


def narrow_by_width(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    score = -((query.double()[:, None] - key.double()) ** 2) / 1e-9
    return score.softmax(-1) @ value.double()


def wide_by_width(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    score = -((query.double()[:, None] - key.double()) ** 2) / 1e12
    return score.softmax(-1) @ value.double()


RIGHT["1.2"] = [("limits by extreme widths", [weights_by_exp, narrow_by_width, wide_by_width])]


# 1.3 ---------------------------------------------------------------------------------

held = wrong("1.3", "held_out_error")


def _scores(key, width):
    return -(((key[:, None] - key) / width) ** 2) / 2


@held("self kept", "nobody's measurements are hidden")
def _(key, value, person, width):
    return F.mse_loss(_scores(key, width).softmax(1) @ value, value)


@held("only itself hidden", "only the measurement itself is hidden")
def _(key, value, person, width):
    guess = leave_one_out(key[:, None], value[:, None], width=width)
    return F.mse_loss(guess[:, 0], value)


@held("weight removed without renormalising", "no longer sum to one")
def _(key, value, person, width):
    weights = _scores(key, width).softmax(1) * (person[:, None] != person)
    return F.mse_loss(weights @ value, value)


@held("score set to zero before the exponential", "What is e^0")
def _(key, value, person, width):
    scores = _scores(key, width) * (person[:, None] != person)
    return F.mse_loss(scores.softmax(1) @ value, value)


@held("mask the wrong way round", "the wrong way round")
def _(key, value, person, width):
    scores = _scores(key, width).masked_fill(person[:, None] != person, -math.inf)
    return F.mse_loss(scores.softmax(1) @ value, value)


@held("sum of errors", "squared errors are added up")
def _(key, value, person, width):
    scores = _scores(key, width).masked_fill(person[:, None] == person, -math.inf)
    return ((scores.softmax(1) @ value - value) ** 2).sum()


@held("root of the error", "root of the mean squared error")
def _(key, value, person, width):
    scores = _scores(key, width).masked_fill(person[:, None] == person, -math.inf)
    return F.mse_loss(scores.softmax(1) @ value, value).sqrt()


@held("one error a measurement", "returned shape [6]; expected []")
def _(key, value, person, width):
    scores = _scores(key, width).masked_fill(person[:, None] == person, -math.inf)
    return (scores.softmax(1) @ value - value) ** 2


def held_out_loop(key: Tensor, value: Tensor, person: Tensor, width: float) -> float:
    total = 0.0
    for j in range(len(key)):
        top = bottom = 0.0
        for l in range(len(key)):  # noqa: E741
            if person[l] != person[j]:
                s = math.exp(-((key[j] - key[l]).item() ** 2) / (2 * width**2))
                top, bottom = top + s * value[l].item(), bottom + s
        total += (top / bottom - value[j].item()) ** 2
    return total / len(key)


def held_out_again(key: Tensor, value: Tensor, person: Tensor, width: float) -> Tensor:
    weights = _scores(key, width).softmax(1) * (person[:, None] != person)
    weights = weights / weights.sum(1, keepdim=True)
    return F.mse_loss(weights @ value, value)


RIGHT["1.3"] = [
    ("two loops, a float", [held_out_loop]),
    ("normalised again afterwards", [held_out_again]),
]


# 1.4 ---------------------------------------------------------------------------------

slope = wrong("1.4", "width_slope")


def _u_and_weights(query, key, width):
    u = (query[:, None] - key) ** 2
    return u, torch.softmax(-u / (2 * width**2), 1)


@slope("normaliser ignored", "the normaliser is treated as a constant")
def _(query, key, value, width):
    u, w = _u_and_weights(query, key, width)
    return (w * u) @ value / width**3


@slope("nothing but the numerator", "the normaliser is treated as a constant")
def _(query, key, value, width):
    u = (query[:, None] - key) ** 2
    return (torch.exp(-u / (2 * width**2)) * u) @ value / width**3


@slope("sign", "but for the sign")
def _(query, key, value, width):
    u, w = _u_and_weights(query, key, width)
    return (w * u * ((w @ value)[:, None] - value)).sum(1) / width**3


@slope("sigma^-2 for sigma^-3", "sigma^-2 where")
def _(query, key, value, width):
    u, w = _u_and_weights(query, key, width)
    return (w * u * (value - (w @ value)[:, None])).sum(1) / width**2


@slope("distance scaled twice", "but for a power of sigma")
def _(query, key, value, width):
    u, w = _u_and_weights(query, key, width)
    return (w * (u / width**2) * (value - (w @ value)[:, None])).sum(1) / width**3


@slope("a factor of two", "factor of two")
def _(query, key, value, width):
    u, w = _u_and_weights(query, key, width)
    return (w * u * (value - (w @ value)[:, None])).sum(1) / (2 * width**3)


@slope("the prediction", "the prediction itself")
def _(query, key, value, width):
    return _u_and_weights(query, key, width)[1] @ value


def slope_by_moments(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    u, w = _u_and_weights(query.float(), key.float(), width)
    value = value.float()
    return (w @ value * -(w * u).sum(1) + (w * u) @ value) / width**3


def slope_by_log_width(query: Tensor, key: Tensor, value: Tensor, width: float) -> Tensor:
    d = (query[:, None] - key) / width
    w = torch.softmax(-(d**2) / 2, -1)
    centred = d**2 - (w * d**2).sum(1, keepdim=True)
    return (w * centred * value).sum(1) / width


RIGHT["1.4"] = [
    ("difference of moments, float32", [slope_by_moments]),
    ("scaled distances, centred on the other side", [slope_by_log_width]),
]


# 1.5 ---------------------------------------------------------------------------------

scaled = wrong("1.5", "scaled_distance_squared")
widths = wrong("1.5", "repaired_widths")


@scaled("widths along the keys", "the widths run along")
def _(query, key, width):
    return (((query[:, None] - key) / width[:, None]) ** 2).sum(-1)


@scaled("widths along the queries", "the widths run along")
def _(query, key, width):
    return (((query[:, None] - key) / width[:, None, None]) ** 2).sum(-1)


@scaled("sum over the keys", "the sum runs over")
def _(query, key, width):
    return (((query[:, None] - key) / width) ** 2).sum(1)


@scaled("multiplied, not divided", "multiplied by the widths")
def _(query, key, width):
    return (((query[:, None] - key) * width) ** 2).sum(-1)


@scaled("squared twice", "squared twice")
def _(query, key, width):
    return ((((query[:, None] - key) / width) ** 2) ** 2).sum(-1)


@scaled("width squared twice", "squared twice")
def _(query, key, width):
    return (((query[:, None] - key) / width**2) ** 2).sum(-1)


@scaled("width not squared", "divided by the width, not by its square")
def _(query, key, width):
    return ((query[:, None] - key) ** 2 / width).sum(-1)


@scaled("the root taken", "this is the distance")
def _(query, key, width):
    return torch.cdist(query / width, key / width)


@scaled("mean over coordinates", "averaged over the coordinates")
def _(query, key, width):
    return (((query[:, None] - key) / width) ** 2).mean(-1)


@scaled("summed, then squared", "summed first, squared afterwards")
def _(query, key, width):
    return ((query[:, None] - key) / width).sum(-1) ** 2


@widths("small widths for the noise", "the smaller widths")
def _(noise):
    return torch.tensor([0.3] + [0.001] * noise)


@widths("the same width for all", "the same width")
def _(noise):
    return torch.full((1 + noise,), 0.3)


@widths("all coordinates switched off", "does not suit the curve")
def _(noise):
    return torch.full((1 + noise,), 1000.0)


@widths("widths of zero", "must be a positive number")
def _(noise):
    return torch.tensor([0.3] + [0.0] * noise)


@widths("not wide enough", "still matter")
def _(noise):
    return torch.tensor([0.3] + [0.8] * noise)


@widths("always four noise coordinates", "expected [9]")
def _(noise):
    return torch.tensor([0.3, 1000.0, 1000.0, 1000.0, 1000.0])


def scaled_expanded(query: Tensor, key: Tensor, width: Tensor) -> Tensor:
    q, k = query / width, key / width
    return (q * q).sum(1, keepdim=True) - 2 * q @ k.T + (k * k).sum(1)


def scaled_loop(query: Tensor, key: Tensor, width: Tensor) -> Tensor:
    total = torch.zeros(len(query), len(key), dtype=torch.float64)
    for c, w in enumerate(width.tolist()):
        total += ((query[:, c, None] - key[:, c]) / w) ** 2
    return total


def infinite_widths(noise: int) -> Tensor:
    result = torch.full((1 + noise,), math.inf)
    result[0] = 0.25
    return result


def moderate_widths(noise: int) -> Tensor:
    return torch.cat([torch.tensor([0.4]), torch.full((noise,), 20.0)]).double()


RIGHT["1.5"] = [
    ("the square multiplied out; infinite widths", [scaled_expanded, infinite_widths]),
    ("a loop over coordinates; moderate widths", [scaled_loop, moderate_widths]),
]


# 1.6 ---------------------------------------------------------------------------------

top = wrong("1.6", "top_k_weights")


def _allowed(distance, k, largest=False):
    k = min(k, distance.shape[1])
    indices = distance.topk(k, dim=1, largest=largest).indices
    return torch.zeros_like(distance, dtype=torch.bool).scatter(1, indices, True)


@top("the k farthest", "the k farthest keys")
def _(distance, k):
    allowed = _allowed(distance, k, largest=True)
    return (-(distance**2) / 2).masked_fill(~allowed, -math.inf).softmax(1)


@top("not renormalised", "no longer sum to one")
def _(distance, k):
    return (-(distance**2) / 2).softmax(1) * _allowed(distance, k)


@top("scores set to zero", "scores of the other keys are set to zero")
def _(distance, k):
    return (-(distance**2) / 2 * _allowed(distance, k)).softmax(1)


@top("largest not subtracted", "far from every key")
def _(distance, k):
    phi = torch.exp(-(distance**2) / 2) * _allowed(distance, k)
    return phi / phi.sum(1, keepdim=True)


@top("chosen over the queries", "each key picks")
def _(distance, k):
    k = min(k, len(distance))
    last = distance.topk(k, dim=0, largest=False).values[-1]
    return (-(distance**2) / 2).masked_fill(distance > last, -math.inf).softmax(1)


@top("equal shares", "share the attention equally")
def _(distance, k):
    allowed = _allowed(distance, k).float()
    return allowed / allowed.sum(1, keepdim=True)


@top("k ignored", "where does k come in")
def _(distance, k):
    return (-(distance**2) / 2).softmax(1)


@top("the k-th nearest left out", "one key too few")
def _(distance, k):
    last = distance.sort(1).values[:, min(k, distance.shape[1]) - 1 :][:, :1]
    return (-(distance**2) / 2).masked_fill(distance >= last, -math.inf).softmax(1)


@top("k larger than the number of keys", "raised RuntimeError at the line `last = ")
def _(distance, k):
    last = distance.topk(k, largest=False).values[:, -1:]
    return (-(distance**2) / 2).masked_fill(distance > last, -math.inf).softmax(1)


@top("the argument is overwritten", "it changes its argument `distance`")
def _(distance, k):
    distance[~_allowed(distance, k)] = math.inf
    return (-(distance**2) / 2).softmax(1)


def top_k_scatter(distance: Tensor, k: int) -> Tensor:
    near, where = distance.double().sort(1)
    weights = (-(near[:, :k] ** 2 - near[:, :1] ** 2) / 2).exp()
    weights = weights / weights.sum(1, keepdim=True)
    return torch.zeros_like(near).scatter(1, where[:, :k], weights)


def top_k_rank(distance: Tensor, k: int) -> Tensor:
    score = -(distance**2) / 2
    score[distance.argsort(1).argsort(1) >= k] = -math.inf
    return F.softmax(score, dim=-1)


RIGHT["1.6"] = [
    ("sorted, weighed and scattered back, float64", [top_k_scatter]),
    ("ranks", [top_k_rank]),
]


# 1.7 ---------------------------------------------------------------------------------

stream = wrong("1.7", "gaussian_stream_kernel")


@stream("tail keys weigh e^0: loads masked, weights not", "empty lanes weigh something")
@triton.jit
def _tail_at_zero(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        k = tl.load(k_ptr + offs, mask=offs < KEY_LEN, other=0.0)
        v = tl.load(v_ptr + offs, mask=offs < KEY_LEN, other=0.0)
        s = tl.exp(-(q - k) * (q - k) / (2 * width * width))
        top += tl.sum(s * v, 0)
        bottom += tl.sum(s, 0)
    tl.store(o_ptr + i, top / bottom)


@stream("tail keys weigh e^0: score masked with 0", "empty lanes weigh something")
@triton.jit
def _tail_score_zero(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.exp(tl.where(inside, -(q - k) * (q - k) / (2 * width * width), 0.0))
        top += tl.sum(s * v, 0)
        bottom += tl.sum(s, 0)
    tl.store(o_ptr + i, top / bottom)


@stream("per-tile averages averaged", "the averages are averaged")
@triton.jit
def _average_of_averages(
    q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    total = 0.0
    tiles = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        total += tl.sum(s * v, 0) / tl.sum(s, 0)
        tiles += 1.0
    tl.store(o_ptr + i, total / tiles)


@stream("last tile only", "only the last tile counts")
@triton.jit
def _last_tile(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        tl.store(o_ptr + i, tl.sum(s * v, 0) / tl.sum(s, 0))


@stream("per-tile averages added", "averages are added up")
@triton.jit
def _sum_of_averages(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        top += tl.sum(s * v, 0) / tl.sum(s, 0)
    tl.store(o_ptr + i, top)


@stream("denominator of the last tile", "the numerator holds the last tile alone")
@triton.jit
def _last_denominator(
    q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        top += tl.sum(s * v, 0)
        bottom = tl.sum(s, 0)
    tl.store(o_ptr + i, top / bottom)


@stream("first tile only", "only the first tile counts")
@triton.jit
def _first_tile(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    offs = tl.arange(0, BLOCK)
    inside = offs < KEY_LEN
    k = tl.load(k_ptr + offs, mask=inside, other=0.0)
    v = tl.load(v_ptr + offs, mask=inside, other=0.0)
    s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
    tl.store(o_ptr + i, tl.sum(s * v, 0) / tl.sum(s, 0))


@stream("numerator only", "this is the numerator")
@triton.jit
def _numerator(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        top += tl.sum(s * v, 0)
    tl.store(o_ptr + i, top)


@stream("width not squared", "compare factor by factor")
@triton.jit
def _sigma(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width)), 0.0)
        top += tl.sum(s * v, 0)
        bottom += tl.sum(s, 0)
    tl.store(o_ptr + i, top / bottom)


@stream("loads without a mask, right numbers", "reads past the end")
@triton.jit
def _reads_on(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        top += tl.sum(s * v, 0)
        bottom += tl.sum(s, 0)
    tl.store(o_ptr + i, top / bottom)


@stream("every program writes its neighbour's output too", "not its own")
@triton.jit
def _two_slots(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    top = 0.0
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        top += tl.sum(s * v, 0)
        bottom += tl.sum(s, 0)
    # Right when programs run one after another: the neighbour comes later and repairs it.
    tl.store(o_ptr + i + tl.arange(0, 2), top / bottom, mask=tl.arange(0, 2) < 2)


@stream("nothing stored", "output 0 is never written")
@triton.jit
def _no_store(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    bottom = 0.0
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        k = tl.load(k_ptr + offs, mask=offs < KEY_LEN, other=0.0)
        bottom += tl.sum(tl.where(offs < KEY_LEN, tl.exp(-(q - k) * (q - k)), 0.0), 0)


@stream("added to what the output held", "the answer is NaN")
@triton.jit
def _added(q_ptr, k_ptr, v_ptr, o_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    q = tl.load(q_ptr + i)
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        inside = offs < KEY_LEN
        k = tl.load(k_ptr + offs, mask=inside, other=0.0)
        v = tl.load(v_ptr + offs, mask=inside, other=0.0)
        s = tl.where(inside, tl.exp(-(q - k) * (q - k) / (2 * width * width)), 0.0)
        tl.store(o_ptr + i, tl.load(o_ptr + i) + tl.sum(s * v, 0) / tl.sum(s, 0))


@triton.jit
def lanes_until_the_end(
    query_ptr, key_ptr, value_ptr, output_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    """One number for each lane, summed once at the end; empty keys infinitely far."""
    i = tl.program_id(0)
    q = tl.load(query_ptr + i)
    top = tl.zeros([BLOCK], tl.float32)
    bottom = tl.zeros([BLOCK], tl.float32)
    for tile in range(tl.cdiv(KEY_LEN, BLOCK)):
        offs = tile * BLOCK + tl.arange(0, BLOCK)
        k = tl.load(key_ptr + offs, mask=offs < KEY_LEN, other=float("inf"))
        v = tl.load(value_ptr + offs, mask=offs < KEY_LEN, other=0.0)
        d = (q - k) / width
        s = tl.exp2(d * d * -0.72134752)
        top += s * v
        bottom += s
    tl.store(output_ptr + i, tl.sum(top, 0) / tl.sum(bottom, 0))


@triton.jit
def clamped(
    query_ptr, key_ptr, value_ptr, output_ptr, width, KEY_LEN: tl.constexpr, BLOCK: tl.constexpr
):
    """Offsets held inside instead of masked; a running maximum; a store in every round."""
    i = tl.program_id(0)
    q = tl.load(query_ptr + i)
    top = 0.0
    bottom = 0.0
    largest = float("-inf")
    for start in range(0, KEY_LEN, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        where = tl.minimum(offs, KEY_LEN - 1)
        k = tl.load(key_ptr + where)
        v = tl.load(value_ptr + where)
        d = (q - k) / width
        score = tl.where(offs < KEY_LEN, -d * d / 2, float("-inf"))
        new = tl.maximum(largest, tl.max(score, 0))
        s = tl.exp(score - new)
        top = top * tl.exp(largest - new) + tl.sum(s * v, 0)
        bottom = bottom * tl.exp(largest - new) + tl.sum(s, 0)
        largest = new
        tl.store(output_ptr + i, top / bottom)


RIGHT["1.7"] = [
    ("sums kept lane by lane", [lanes_until_the_end]),
    ("offsets clamped, running maximum", [clamped]),
]


# The formulas of known mistakes ------------------------------------------------------

TABLES: list[Table] = [
    (checks._BOXCAR_CASES, checks._boxcar, checks._BOXCAR_MISTAKES),
    (checks._WEIGHT_CASES, checks._gaussian, checks._WEIGHT_MISTAKES),
    (checks._LIMIT_CASES, checks._nearest, checks._NARROW_MISTAKES),
    (checks._LIMIT_CASES, checks._everything, checks._WIDE_MISTAKES),
    (checks._HELD_OUT_CASES, checks._held_out, checks._HELD_OUT_MISTAKES),
    (checks._SLOPE_CASES, checks._slope, checks._SLOPE_MISTAKES),
    (checks._SCALED_CASES, checks._scaled, checks._SCALED_MISTAKES),
    (checks._TOP_K_CASES, checks._top_k, checks._TOP_K_MISTAKES),
    (checks._STREAM_CASES, checks._stream, checks._STREAM_MISTAKES),
]
