"""Metrics of objectives in float64 NumPy, over all examples at once.

Outputs and targets are whole arrays; nothing is summed by batches.
"""

import numpy as np


def _log_softmax(logits):
    shifted = np.asarray(logits, np.float64)
    shifted = shifted - shifted.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _cross_entropy(logits, classes):
    return -np.take_along_axis(_log_softmax(logits), classes[..., None], -1)[..., 0]


def classification(logits, classes):
    """Cross-entropy, and whether the class is the likeliest, or of the five likeliest."""
    order = np.argsort(-np.asarray(logits, np.float64), -1, kind="stable")
    told = {
        "loss": _cross_entropy(logits, classes).mean(),
        "accuracy": (order[:, 0] == classes).mean(),
    }
    if logits.shape[-1] >= 20:
        told["top_5_accuracy"] = (order[:, :5] == classes[:, None]).any(-1).mean()
    return told


def multilabel(logits, flags):
    """Binary cross-entropy; precision and recall of all flags together, in F1."""
    logits, flags = np.asarray(logits, np.float64), np.asarray(flags, bool)
    predicted = logits > 0
    losses = np.where(flags, np.logaddexp(0, -logits), np.logaddexp(0, logits))
    hits = (predicted & flags).sum()
    precision, recall = hits / predicted.sum(), hits / flags.sum()
    return {
        "loss": losses.mean(),
        "flags_right": (predicted == flags).mean(),
        "subset_accuracy": (predicted == flags).all(-1).mean(),
        "micro_f1": 2 * precision * recall / (precision + recall),
    }


def regression(predictions, values, of_training, delta=None):
    """Errors of predictions in standard deviations from the mean of the training targets."""
    mean, deviation = of_training.mean(0), of_training.std(0)
    predictions = mean + deviation * np.asarray(predictions, np.float64)
    errors = predictions - values
    sizes = np.abs(errors / deviation)
    losses = sizes**2
    if delta is not None:
        losses = np.where(sizes <= delta, sizes**2 / 2, delta * (sizes - delta / 2))
    explained = 1 - (errors**2).sum(0) / ((values - values.mean(0)) ** 2).sum(0)
    return {
        "loss": losses.mean(),
        "rmse": np.sqrt((errors**2).mean()),
        "r2": explained.mean(),
    }


def next_token(logits, tokens, padding=None):
    """Cross-entropy of each token but the first, of logits after each but the last."""
    wanted = tokens[:, 1:]
    losses = _cross_entropy(logits, wanted)
    if padding is not None:
        losses = losses[wanted != padding]
    nats = losses.mean()
    return {"loss": nats, "perplexity": np.exp(nats), "bits_per_byte": nats / np.log(2)}


def per_pixel(logits, classes):
    """Over the positions whose class is not -1."""
    counted = classes >= 0
    logits, classes = logits[counted], classes[counted]
    likeliest = np.asarray(logits).argmax(-1)
    shares = []
    for one in range(logits.shape[-1]):
        union = ((likeliest == one) | (classes == one)).sum()
        if union:
            shares.append(((likeliest == one) & (classes == one)).sum() / union)
    return {
        "loss": _cross_entropy(logits, classes).mean(),
        "mean_iou": np.mean(shares),
        "pixel_accuracy": (likeliest == classes).mean(),
    }
