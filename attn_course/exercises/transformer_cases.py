"""Chapter 6's exercises: what answers are tried on, and the right ones, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attn_course.exercises.framework import Case


def _random(seed: int) -> Callable[..., Tensor]:
    """Normal numbers in float64, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


# 6.1 ---------------------------------------------------------------------------------


def _causal(valid_lens: Tensor, length: int) -> Tensor:
    """Pair by pair: 1 where a query may attend to a key."""
    table = torch.zeros(len(valid_lens), length, length, dtype=torch.float64)
    for b, valid in enumerate(valid_lens.tolist()):
        for i in range(length):
            table[b, i, : min(i + 1, valid)] = 1
    return table


def _lens(lens: list[int], length: int) -> dict[str, Any]:
    return {"valid_lens": torch.tensor(lens), "length": length}


# In the first, a mask over the batch, or over the wrong of two axes, raises nothing.
_CAUSAL_CASES = (
    Case("as many sentences as tokens", _lens([4, 2, 3, 1], 4)),
    Case("padding in two of three sentences", _lens([6, 3, 1], 6)),
    Case("no padding", _lens([5, 5], 5)),
    Case("one token", _lens([1], 1)),
    Case("a sentence without tokens", _lens([0, 3], 3)),
)


# 6.2 ---------------------------------------------------------------------------------


class _Sublayer:
    """Mixes tokens, then features; stands for attention or a feed-forward network."""

    def __init__(self, dim: int, seed: int) -> None:
        self.weight = _random(seed)(dim, dim)

    def __call__(self, x: Tensor) -> Tensor:
        return ((x + x.mean(1, keepdim=True)) @ self.weight.to(x)).tanh()

    def __repr__(self) -> str:
        return "sublayer"


class _Norm:
    """Layer normalisation with a gain and a shift of its own."""

    def __init__(self, dim: int, seed: int) -> None:
        random = _random(seed)
        self.weight, self.bias = 1 + random(dim) / 2, random(dim)

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight.to(x), self.bias.to(x))

    def __repr__(self) -> str:
        return "norm"


def _layer_norm(x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _tokens(*shape: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * _random(seed)(*shape) + 1


# The cube comes first: there, no axis raises anything.
_LAYER_NORM_CASES = (
    Case("a cube", {"x": _tokens(4, 4, 4, seed=201), "eps": 1e-5}),
    Case("more features than tokens", {"x": _tokens(2, 3, 6, seed=202), "eps": 1e-5}),
    Case("a large eps", {"x": _tokens(1, 5, 3, seed=203), "eps": 0.5}),
    Case("features that are all alike", {"x": torch.full((2, 2, 5), 3.0).double(), "eps": 1e-5}),
    Case("one token", {"x": _tokens(1, 1, 4, seed=204, scale=20.0), "eps": 1e-5}),
)


def _post_norm(x: Tensor, sublayer: _Sublayer, norm: _Norm) -> Tensor:
    return norm(x + sublayer(x))


def _pre_norm(x: Tensor, sublayer: _Sublayer, norm: _Norm) -> Tensor:
    return x + sublayer(norm(x))


def _pre_norm_stack(x: Tensor, sublayers: list[_Sublayer], norms: list[_Norm]) -> Tensor:
    for sublayer, norm in zip(sublayers, norms[:-1], strict=True):
        x = _pre_norm(x, sublayer, norm)
    return norms[-1](x)


def _block(name: str, batch: int, length: int, dim: int, seed: int) -> Case:
    x = _tokens(batch, length, dim, seed=seed)
    return Case(name, {"x": x, "sublayer": _Sublayer(dim, seed), "norm": _Norm(dim, seed + 1)})


def _stack(name: str, layers: int, batch: int, length: int, dim: int, seed: int) -> Case:
    x = _tokens(batch, length, dim, seed=seed)
    sublayers = [_Sublayer(dim, seed + k) for k in range(layers)]
    norms = [_Norm(dim, seed + 50 + k) for k in range(layers + 1)]
    return Case(name, {"x": x, "sublayers": sublayers, "norms": norms})


_BLOCK_CASES = (
    _block("three sentences", 3, 4, 5, 211),
    _block("one token", 1, 1, 4, 213),
    _block("many features", 2, 3, 16, 215),
)

_STACK_CASES = (
    _stack("three sublayers", 3, 2, 4, 5, 221),
    _stack("two sublayers", 2, 1, 3, 4, 323),
    _stack("one sublayer", 1, 2, 2, 6, 425),
    _stack("no sublayer at all", 0, 1, 2, 4, 527),
)


# 6.3 ---------------------------------------------------------------------------------


def _past(n: int) -> Tensor:
    return torch.ones(n, n, dtype=torch.bool).tril()


def _with_pairs(n: int, *pairs: tuple[int, int]) -> Tensor:
    seen = _past(n)
    for i, j in pairs:
        if 0 <= i and j < n:  # a sentence may be cut off before them
            seen[i, j] = True
    return seen


def _open_last(n: int) -> Tensor:
    seen = _past(n)
    seen[:, -1] = True
    return seen


def _ahead_from(n: int, first: int) -> Tensor:
    """From some position on, each sees the token after it as well."""
    ahead = torch.ones(n, n, dtype=torch.bool).tril(1)
    ahead[:first] = _past(n)[:first]
    return ahead


#: What a decoder's mask may be -> who sees whom, for a length, and whether it trains.
_HOLES: dict[str, Callable[[int, bool], Tensor]] = {
    "sound": lambda n, training: _past(n),
    "no mask in evaluation": lambda n, training: (
        _past(n) if training else torch.ones(n, n, dtype=torch.bool)
    ),
    "a hole in evaluation": lambda n, training: _past(n) if training else _ahead_from(n, 2),
    "one position that sees the next": lambda n, training: _with_pairs(n, (2, 3)),
    "one position that sees farther": lambda n, training: _with_pairs(n, (3, 5)),
    "several positions that see the next": lambda n, training: _ahead_from(n, 3),
    "two holes": lambda n, training: _with_pairs(n, (1, 4), (3, 4)),
    "the last token open to all": lambda n, training: _open_last(n),
    "the last token open to its neighbour": lambda n, training: _with_pairs(n, (n - 2, n - 1)),
}


class Decoder(nn.Module):
    """A layer of self-attention with random weights, and perhaps a hole in its mask.

    Args:
        hole: Its name in ``_HOLES``.
        dropout: The probability.
        seed: Chooses the weights.
        training: In which mode it comes.
    """

    def __init__(self, hole: str, dropout: float, seed: int, training: bool) -> None:
        super().__init__()
        random = _random(seed)
        self._maps = [random(4, 4) for _ in range(3)]
        self.hole, self.dropout, self.came_training = hole, dropout, training
        self.train(training)

    def forward(self, x: Tensor) -> Tensor:
        """What each token says: ``[batch, len, 4]`` to the same shape."""
        query, key, value = (x @ weight.to(x) for weight in self._maps)
        seen = _HOLES[self.hole](x.shape[1], self.training)
        scores = (query @ key.mT / 8).masked_fill(~seen, -torch.inf)
        return x + F.dropout(scores.softmax(2) @ value, self.dropout, self.training)

    def __repr__(self) -> str:
        """What a message calls it; it does not tell the hole."""
        return "a decoder"


def _sees(model: Decoder, n: int, training: bool) -> Tensor:
    """Which position sees which later one, by construction."""
    return _HOLES[model.hole](n, training).triu(1)


def _position(found: int | None) -> Tensor:
    """A position as a tensor; -1 stands for none."""
    return torch.tensor(-1.0 if found is None else float(found), dtype=torch.float64)


def _first(seen: Tensor) -> int | None:
    """The first row in which anything is seen."""
    rows = seen.any(1).nonzero().flatten().tolist()
    return rows[0] if rows else None


def _leaks(model: Decoder, x: Tensor) -> Tensor:
    return _position(_first(_sees(model, x.shape[1], training=False)))


def _suspected(
    hole: str, seed: int, *, dropout: float = 0.0, training: bool = True, length: int = 6
) -> Case:
    mode = "training" if training else "evaluation"
    what = "a sound decoder" if hole == "sound" else f"a decoder with {hole}"
    with_dropout = ", with dropout" if dropout else ""
    inputs = {"model": Decoder(hole, dropout, seed, training), "x": _random(seed)(2, length, 4)}
    return Case(f"{what}{with_dropout}, which came in {mode} mode", inputs)


_LEAK_CASES = (
    _suspected("sound", 32, dropout=0.5),
    _suspected("no mask in evaluation", 31),
    _suspected("one position that sees the next", 33, training=False),
    _suspected("sound", 34, training=False, dropout=0.5),
    _suspected("one position that sees farther", 35, training=False),
    _suspected("a hole in evaluation", 36, dropout=0.3),
    _suspected("several positions that see the next", 37, training=False),
    _suspected("two holes", 38, training=False),
    _suspected("the last token open to all", 39, training=False),
    _suspected("the last token open to its neighbour", 40, training=False, length=5),
    _suspected("sound", 41, length=1),
)


def _lens_allowed(batch: int, new: int, cached: int, training: bool) -> Tensor:
    return (cached + 1 + torch.arange(new)).repeat(batch, 1).double()


def _newcomers(batch: int, new: int, cached: int, training: bool) -> dict[str, Any]:
    return {"batch": batch, "new": new, "cached": cached, "training": training}


_LENS_CASES = (
    Case("a whole sentence in training", _newcomers(2, 5, 0, True)),
    Case("a whole sentence in evaluation", _newcomers(2, 5, 0, False)),
    Case("one new token", _newcomers(3, 1, 4, False)),
    Case("three new tokens at once", _newcomers(2, 3, 4, False)),
    Case("the first token", _newcomers(1, 1, 0, False)),
)


# 6.4 ---------------------------------------------------------------------------------


def _smooth(labels: Tensor, vocab: int, smoothing: float, pad: int) -> Tensor:
    """Word by word."""
    target = torch.zeros(*labels.shape, vocab, dtype=torch.float64)
    for place in (labels != pad).nonzero().tolist():
        row = target[tuple(place)]
        row += smoothing / (vocab - 2)
        row[pad] = 0
        row[labels[tuple(place)]] = 1 - smoothing
    return target


def _smooth_loss(logits: Tensor, labels: Tensor, smoothing: float, pad: int) -> Tensor:
    each = -(_smooth(labels, logits.shape[-1], smoothing, pad) * logits.log_softmax(-1)).sum(-1)
    return each.sum() / (labels != pad).sum()


def _padded_labels(lens: list[int], vocab: int, pad: int, seed: int) -> Tensor:
    """Sentences of so many words, none of them padding."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, vocab, (len(lens), max(lens)), generator=generator)
    words[words == pad] = 0  # a word, where padding has another id
    padding = torch.arange(max(lens)) >= torch.tensor(lens).unsqueeze(1)
    return words.masked_fill(padding, pad)


def _label_case(
    name: str, lens: list[int], vocab: int, smoothing: float, pad: int, seed: int
) -> Case:
    labels = _padded_labels(lens, vocab, pad, seed)
    return Case(name, {"labels": labels, "vocab": vocab, "smoothing": smoothing, "pad": pad})


def _logit_case(
    name: str, lens: list[int], vocab: int, smoothing: float, pad: int, seed: int, scale: float = 2
) -> Case:
    labels = _padded_labels(lens, vocab, pad, seed)
    logits = scale * _random(seed)(*labels.shape, vocab)
    inputs = {"logits": logits, "labels": labels, "smoothing": smoothing, "pad": pad}
    return Case(name, inputs)


_SMOOTH_CASES = (
    _label_case("some padding", [4, 2, 1], 5, 0.2, 0, 401),
    _label_case("padding that has another id than 0", [2, 3], 6, 0.1, 4, 402),
    _label_case("no smoothing", [3, 2], 4, 0.0, 0, 403),
    _label_case("no padding", [2, 2], 7, 0.3, 0, 404),
    _label_case("two words in all", [2, 1], 3, 0.5, 2, 405),
)

_SMOOTH_LOSS_CASES = (
    _logit_case("much padding", [6, 2, 1], 7, 0.2, 0, 411),
    _logit_case("padding that has another id than 0", [3, 5], 6, 0.1, 4, 412),
    _logit_case("no smoothing", [4, 2], 5, 0.0, 0, 413),
    _logit_case("no padding", [3, 3], 4, 0.3, 0, 414),
    _logit_case("large logits", [4, 2], 5, 0.1, 0, 415, scale=2000),
)


# 6.5 ---------------------------------------------------------------------------------


class Maps:
    """The parts of a layer of self-attention, ready to be called.

    Attributes:
        W_q: Projects tokens ``[..., dim]`` to queries of that shape.
        W_k: To keys.
        W_v: To values.
        rows: How many tokens each of the three maps has projected.
    """

    def __init__(self, dim: int, seed: int) -> None:
        random = _random(seed)
        self.rows: Counter[str] = Counter()
        self._positions = 2 * random(12, dim)

        def counted(name: str) -> Callable[[Tensor], Tensor]:
            weight = random(dim, dim)

            def project(x: Tensor) -> Tensor:
                self.rows[name] += x.numel() // dim
                return x @ weight.to(x)

            return project

        self.W_q, self.W_k, self.W_v = counted("W_q"), counted("W_k"), counted("W_v")

    @property
    def positions(self) -> Tensor:
        """What is added to a token at each position before it is projected, ``[12, dim]``."""
        return self._positions.clone()

    def __repr__(self) -> str:
        """What a message calls them."""
        return "W_q, W_k, W_v, positions"


#: Parents of the beams after each step; None where they stay as they are.
_Parents = Sequence[list[int] | None]


def _histories(tokens: Tensor, parents: _Parents) -> list[Tensor]:
    """For each step all tokens so far, of each beam: ``[batch, step + 1, dim]``."""
    past, seen = tokens.new_zeros(tokens.shape[1], 0, tokens.shape[2]), []
    for x, kept in zip(tokens, parents, strict=True):
        past = torch.cat([past, x.unsqueeze(1)], 1)
        seen.append(past)
        past = past if kept is None else past[kept]
    return seen


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One query a sentence, ``[batch, dim]``; zero where there is no key."""
    scores = torch.einsum("bd,bjd->bj", query, key) / query.shape[-1] ** 0.5
    return torch.einsum("bj,bjd->bd", scores.softmax(1), value)


def _decode(tokens: Tensor, parents: _Parents, maps: Maps) -> Tensor:
    """Without a cache: at each step everything anew, ``[steps, batch, dim]``."""
    outputs = []
    for past in _histories(tokens, parents):
        x = past + maps.positions[: past.shape[1]]
        outputs.append(_attend(maps.W_q(x[:, -1]), maps.W_k(x), maps.W_v(x)))
    return torch.stack(outputs)


def _reorder(keys: Tensor, values: Tensor, parents: Tensor) -> Tensor:
    """Both, one above the other: ``[2, beams, len, dim]``."""
    return torch.stack(
        [torch.stack([part[int(parent)] for parent in parents]) for part in (keys, values)]
    )


def _written(name: str, steps: int, batch: int, dim: int, seed: int, parents: _Parents) -> Case:
    tokens = _random(seed)(steps, batch, dim)
    return Case(name, {"tokens": tokens, "parents": list(parents), "maps": Maps(dim, seed + 1)})


_CACHE_CASES = (
    _written("five steps", 5, 2, 4, 501, [None] * 5),
    _written("as many beams as features", 4, 4, 4, 503, [None] * 4),
    _written("beams that change places", 5, 3, 2, 505, [None, [2, 0, 0], None, [1, 2, 2], None]),
    _written("one step", 1, 2, 3, 507, [None]),
)


def _beams(name: str, batch: int, length: int, dim: int, parents: list[int], seed: int) -> Case:
    random = _random(seed)
    keys, values = random(batch, length, dim), random(batch, length, dim)
    return Case(name, {"keys": keys, "values": values, "parents": torch.tensor(parents)})


_REORDER_CASES = (
    _beams("as many beams as steps", 4, 4, 3, [2, 0, 3, 1], 511),
    _beams("a parent with several children", 3, 5, 2, [1, 1, 0], 512),
    _beams("beams that end", 4, 2, 3, [3, 1], 513),
    _beams("one sentence that becomes three beams", 1, 3, 2, [0, 0, 0], 514),
)


# 6.6 ---------------------------------------------------------------------------------


def _norm_backward(
    x: Tensor, weight: Tensor, grad: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """By automatic differentiation: it owes nothing to a formula on paper."""
    leaves = [x.clone(), weight.clone(), torch.zeros_like(weight)]
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        output = F.layer_norm(leaves[0], x.shape[-1:], leaves[1], leaves[2], eps)
        dx, dweight, dbias = torch.autograd.grad(output, leaves, grad)
    return dx, dweight, dbias


def _normed(n: int, dim: int, seed: int, eps: float = 1e-5, scale: float = 2.0) -> dict[str, Any]:
    random = _random(seed)
    return {
        "x": scale * random(n, dim) + 1,
        "weight": 1 + random(dim) / 2,
        "grad": random(n, dim) + 0.5,
        "eps": eps,
    }


# The square comes first: there, a sum over the wrong axis raises nothing.
_NORM_BACKWARD_CASES = (
    Case("as many tokens as features", _normed(4, 4, 601)),
    Case("more features than tokens", _normed(2, 7, 602)),
    Case("more tokens than features", _normed(6, 3, 603)),
    Case("a large eps", _normed(3, 5, 604, eps=0.5, scale=0.5)),
    Case("one token", _normed(1, 5, 605)),
)


# 6.7 ---------------------------------------------------------------------------------


def _norm_rows(x: Tensor, weight: Tensor, bias: Tensor, block: int, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _rows(
    n: int, dim: int, block: int, seed: int, eps: float = 1e-5, shift: float = 1.0
) -> dict[str, Any]:
    random = _random(seed)
    return {
        "x": (1.5 * random(n, dim) + shift).float(),
        "weight": (1 + random(dim) / 2).float(),
        "bias": random(dim).float(),
        "block": block,
        "eps": eps,
    }


_NORM_ROWS_CASES = (
    Case("a tail of one lane", _rows(4, 7, 8, 701)),
    Case("rows that fill their tile", _rows(3, 16, 16, 702)),
    Case("a tile much wider than the row", _rows(3, 13, 32, 703)),
    Case("a large eps", _rows(2, 9, 16, 704, eps=0.5)),
    Case("forty features", _rows(2, 40, 64, 705)),
)

#: Judged by itself: what rounding makes of a formula that cancels, no other formula knows.
_SHIFTED_CASE = Case("a mean far from zero", _rows(3, 12, 16, 706, shift=4000.0))


# 6.8 ---------------------------------------------------------------------------------


def _causal_attention(
    query: Tensor, key: Tensor, value: Tensor, block_m: int, block_n: int
) -> Tensor:
    scores = query @ key.T / query.shape[1] ** 0.5
    return scores.masked_fill(~_past(len(query)), -torch.inf).softmax(1) @ value


def _needed(tile: int, length: int, block_m: int, block_n: int) -> int:
    """How many tiles of keys the queries of a tile can see."""
    return -(-min((tile + 1) * block_m, length) // block_n)


def _sequence(length: int, dim: int, block_m: int, block_n: int, seed: int) -> dict[str, Any]:
    random = _random(seed)
    query, key, value = ((1.5 * random(length, dim)).float() for _ in range(3))
    return {"query": query, "key": key, "value": value, "block_m": block_m, "block_n": block_n}


_CAUSAL_KERNEL_CASES = (
    Case("tiles of four, and a tail", _sequence(13, 4, 4, 4, 801)),
    Case("tiles of queries that are the larger ones", _sequence(16, 4, 8, 4, 802)),
    Case("tiles of keys that are the larger ones", _sequence(22, 2, 4, 8, 803)),
    Case("one tile, not full", _sequence(7, 4, 16, 16, 804)),
    Case("forty tokens", _sequence(40, 2, 16, 8, 805)),
)
