"""A decoder-only transformer, token by token and head by head, in double precision."""

import numpy as np

from .basis import as_double


def gpt(
    params, tokens, *, norm_position, norm, heads, depth, rotary=False, query_key_norm=False
) -> np.ndarray:
    """Logits of the token after each of some tokens, (N, T).

    Args:
        params: Names as the layers give them; without "head" the embedding makes the logits.
        tokens: Numbers of tokens, (N, T).
        norm_position: "pre", "post" or "peri".
        norm: Vectors, parameters of a norm -> normalized.
        heads: Heads of the attention.
        depth: Number of blocks.
        rotary: Whether positions turn queries and keys, and are not added.
        query_key_norm: Whether queries and keys are normalized.
    """
    given = {
        "norm_position": norm_position,
        "norm": norm,
        "heads": heads,
        "depth": depth,
        "rotary": rotary,
        "query_key_norm": query_key_norm,
    }
    embedding = as_double(params["embedding"]["embedding"])
    return np.stack([_of_one(params, it, embedding, given) for it in tokens])


def _of_one(params, tokens, embedding, given) -> np.ndarray:
    position, norm = given["norm_position"], given["norm"]

    def normed(x, name):
        return np.stack([norm(vector, params[name]) for vector in x])

    def dense(x, name):
        return x @ as_double(params[name]["kernel"]) + as_double(params[name].get("bias", 0.0))

    def attention(x, block):
        query, key, value = (dense(x, f"{it}_{block}") for it in ("query", "key", "value"))
        size = x.shape[-1] // given["heads"]
        found = np.zeros_like(x)
        for head in range(given["heads"]):
            part = slice(head * size, (head + 1) * size)
            q, k = query[:, part], key[:, part]
            if given["query_key_norm"]:
                q, k = normed(q, f"norm_{block}_query"), normed(k, f"norm_{block}_key")
            if given["rotary"]:
                q, k = _turned(q), _turned(k)
            for place in range(len(x)):
                products = k[: place + 1] @ q[place] / np.sqrt(size)
                weights = np.exp(products - products.max())
                found[place, part] = weights @ value[: place + 1, part] / weights.sum()
        return dense(found, f"output_{block}")

    def perceptron(x, block):
        x = dense(x, f"hidden_{block}")
        x = x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
        return dense(x, f"dense_{block}")

    x = embedding[tokens] * as_double(params.get("embedding_scale", 1.0))
    if not given["rotary"]:
        x = x + as_double(params["positions"])[: len(tokens)]
    if position == "peri":
        x = normed(x, "norm_first")
    for block in range(given["depth"]):
        for name, branch in (("attention", attention), ("mlp", perceptron)):
            place = f"norm_{block}_{name}"
            if position == "pre":
                x = x + branch(normed(x, place), block)
            elif position == "post":
                x = normed(x + branch(x, block), place)
            else:
                x = x + normed(branch(normed(x, place), block), f"{place}_after")
    x = x if position == "post" else normed(x, "norm_last")
    return x @ (as_double(params["head"]["kernel"]) if "head" in params else embedding.T)


def _turned(x):
    turned = np.zeros_like(x)
    size = x.shape[-1]
    for place, vector in enumerate(x):
        for pair in range(size // 2):
            angle = place * 10_000.0 ** (-2 * pair / size)
            # As a complex number, turned by its angle.
            both = complex(vector[2 * pair], vector[2 * pair + 1]) * np.exp(1j * angle)
            turned[place, 2 * pair : 2 * pair + 2] = both.real, both.imag
    return turned
