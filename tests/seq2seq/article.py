"""The source's loop, as an oracle: one sentence, one step and one h at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attn_course.seq2seq import Seq2Seq


def cell(
    rnn: nn.Module, layer: int, x: Tensor, h: Tensor, c: Tensor | None, end: str = ""
) -> tuple:
    """One step of a GRU or LSTM, from its equations."""
    w_x, w_h, b_x, b_h = (
        getattr(rnn, f"{name}_l{layer}{end}")
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    from_x, from_h = w_x @ x + b_x, w_h @ h + b_h
    if c is None:
        (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3), from_h.chunk(3)
        z = torch.sigmoid(z_x + z_h)
        n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
        return (1 - z) * n + z * h, None
    i, f, g, o = (from_x + from_h).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def read(model: Seq2Seq, source: list[int]) -> tuple[list[Tensor], list, list]:
    """All h of the last layer, and the final state and cell of each layer."""
    encoder = model.encoder
    rnn, size = encoder.rnn, encoder.rnn.hidden_size
    inputs = [encoder.embedding.weight[token] for token in source]
    finals, final_cells = [], []
    for layer in range(encoder.num_layers):
        directions = []
        for end in ("", "_reverse")[: encoder.directions]:
            h = inputs[0].new_zeros(size)
            c = h if encoder.cell == "lstm" else None
            states = []
            for x in inputs[::-1] if end else inputs:
                h, c = cell(rnn, layer, x, h, c, end)
                states.append(h)
            directions.append((states[::-1] if end else states, h, c))
        both = [states for states, _, _ in directions]
        inputs = [torch.cat(hs) for hs in zip(*both, strict=True)]
        finals.append(torch.cat([h for _, h, _ in directions]))
        if encoder.cell == "lstm":
            final_cells.append(torch.cat([c for _, _, c in directions]))
    return inputs, finals, final_cells


def score(attention: nn.Module, name: str, query: Tensor, h: Tensor) -> Tensor:
    """How relevant one h is to the query."""
    query, net = attention.match_query(query), attention.scoring
    if name == "additive":
        return net.w_v @ torch.tanh(net.W_q.weight @ query + net.W_k.weight @ h)
    if name == "no_v":
        return torch.tanh(net.W_q.weight @ query + net.W_k.weight @ h).sum()
    if name == "dot":
        return query @ h
    if name == "scaled_dot":
        return query @ h / len(h) ** 0.5
    if name == "bilinear":
        return query @ net.M @ h / len(query) ** 0.5
    if name == "cosine":
        return query @ h / (query.norm() * h.norm()) / net.log_temperature.exp()
    assert name == "uniform"
    return h.new_zeros(())


def translate(
    model: Seq2Seq,
    source: list[int],
    tokens: list[int],
    *,
    scoring: str | None = "additive",
    query: tuple[str, ...] = ("state",),
    window: int | None = None,
    attend_generated: bool = False,
    language: int | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Logits after each token, [len(tokens), vocab_size], and each step's weights."""
    decoder = model.decoder
    all_h, finals, final_cells = read(model, source)
    layers = [h if decoder.bridge is None else torch.tanh(decoder.bridge[0](h)) for h in finals]
    cells = [c if decoder.bridge is None else torch.tanh(decoder.bridge[1](c)) for c in final_cells]
    context = finals[-1] if scoring is None else torch.zeros_like(finals[-1])
    logits, rows, generated = [], [], []
    for t, token in enumerate(tokens):
        embedded = decoder.embedding.weight[token]
        if scoring is not None:
            parts = {"state": layers[-1], "token": embedded, "context": context}
            if language is not None:
                parts["language"] = decoder.language.weight[language]
            q = torch.cat([parts[part] for part in query])
            energies = []
            for j, h in enumerate(all_h):
                seen = window is None or abs(j - t) <= window
                energies.append(score(decoder.attention, scoring, q, h) if seen else None)
            for h in generated:
                energies.append(score(decoder.attention, scoring, q, h))
            total = sum(torch.exp(e) for e in energies if e is not None)
            weights = [q.new_zeros(()) if e is None else torch.exp(e) / total for e in energies]
            context = sum(w * h for w, h in zip(weights, all_h + generated, strict=True))
            rows.append(torch.stack(weights))
        x = torch.cat([context, embedded])
        for layer in range(decoder.num_layers):
            c = cells[layer] if cells else None
            x, c = cell(decoder.rnn, layer, x, layers[layer], c)
            layers[layer] = x
            if cells:
                cells[layer] = c
        if attend_generated:
            generated = [*generated, decoder.attention.match_generated(x)]
        logits.append(decoder.output(x))
    return torch.stack(logits), rows
