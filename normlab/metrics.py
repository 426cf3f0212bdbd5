"""What the numbers of an objective mean, and between which bounds they lie; without JAX."""

from collections.abc import Mapping

from .spec import Spec

# What rounding in float32 may bring beyond a bound.
ROUNDING = 1e-5


class Metric(Spec):
    """What a number of an objective means.

    Attributes:
        higher_is_better: Whether the larger of two is the better one.
        share: Whether it is a share, between 0 and 1, which is shown in percent.
        title: What pages and tables call it; its name by default, with spaces.
        unit: What it is measured in, where it has a unit and is no share.
        least: The smallest that it can be, where there is one; 0 of a share.
        most: The largest; 1 of a share.
    """

    higher_is_better: bool
    share: bool = False
    title: str = ""
    unit: str = ""
    least: float | None = None
    most: float | None = None

    @property
    def bounds(self) -> tuple[float | None, float | None]:
        """The smallest and the largest that it can be."""
        return (0.0, 1.0) if self.share else (self.least, self.most)


# The mean of what is trained by.
LOSS = Metric(higher_is_better=False)
_NATS = Metric(higher_is_better=False, unit="nats", least=0)


def _share(title: str = "") -> Metric:
    return Metric(higher_is_better=True, share=True, title=title)


# Objective -> name -> meaning, of those that normlab has; the first one is reported by default.
CLASSIFICATION: Mapping[str, Metric] = {
    "accuracy": _share(),
    "top_5_accuracy": _share("top-5 accuracy"),
    "loss": _NATS,
}
MULTILABEL: Mapping[str, Metric] = {
    "micro_f1": Metric(higher_is_better=True, title="micro F1", least=0, most=1),
    "flags_right": _share(),
    "subset_accuracy": _share(),
    "loss": _NATS,
}
REGRESSION: Mapping[str, Metric] = {
    "rmse": Metric(higher_is_better=False, title="RMSE", least=0),
    "r2": Metric(higher_is_better=True, title="R²", most=1),
    "loss": Metric(higher_is_better=False, least=0),
}
NEXT_TOKEN: Mapping[str, Metric] = {
    "perplexity": Metric(higher_is_better=False, least=1),
    "bits_per_byte": Metric(higher_is_better=False, title="bits per byte", unit="bits", least=0),
    "loss": _NATS,
}
PER_PIXEL: Mapping[str, Metric] = {
    "mean_iou": _share("mean IoU"),
    "pixel_accuracy": _share(),
    "loss": _NATS,
}
METRICS = {
    "classification": CLASSIFICATION,
    "multilabel": MULTILABEL,
    "regression": REGRESSION,
    "next_token": NEXT_TOKEN,
    "per_pixel": PER_PIXEL,
}
