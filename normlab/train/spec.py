"""How long and how to train: what a configuration may say."""

from typing import Any, Literal

from pydantic import PositiveFloat, model_validator

from ..data.augment import Augmentation, Moves
from ..length import Length, length_of
from ..spec import Count, Few, Spec

EPOCHS = 10


class TrainSpec(Spec):
    """How long and how to train.

    A run is so many epochs long, or so many steps: `train: {steps: 50000, evaluate_every: 1000}`.

    Attributes:
        epochs: Passes over the training examples; 10 where neither these nor steps are given.
        steps: Steps of the optimizer, instead of epochs.
        validate_every: Epochs between two evaluations on the validation split; one comes after the
            last epoch in any case. The times to a target are known no finer.
        evaluate_every: Steps between two evaluations on the validation split, for a run of so many
            steps; the curve has as many points. By default there are 20 of them.
        accumulate: Micro-batches that a batch goes through the network in, one after the other, so
            that a batch can be larger than memory: `data.batch_size` stays the batch of a step of
            the optimizer, and must be so many times a whole number. Layers with batch statistics
            normalize each micro-batch by its own, and running statistics move once a step, to
            the average of what the micro-batches would each have made of them, as those of
            `ghost_batch_norm` with `running: average` do. What a network draws, as for dropout,
            it draws for each micro-batch.
        precision: Dtype of the computation; parameters, statistics and loss are float32.
        initialization_scale: What the initial weights of dense layers and convolutions are
            multiplied by.
        augment: How training images are changed at random: `"none"`; `"flip"` for mirror images of
            half of them; `"crop_flip"` for a crop of each as well, moved by up to 4 pixels each
            way, with zeros, in the units of the files, coming in.
        cutout: Side of a square of each training image that is set to the mean, in pixels, its
            centre anywhere in the image (DeVries and Taylor, 2017).
        mixup: Training images and their labels are mixed with those of another example of the
            batch, in a proportion of each batch that is drawn from the beta distribution of this
            and this (Zhang et al., 2018). The accuracy in training is then that of the class
            with the larger share.
        checkpoint_every: Steps after which a run is saved, to go on from there if it is stopped or
            killed; None for none. Changes no number.
    """

    epochs: Count | None = None
    steps: Count | None = None
    validate_every: Count = 1
    evaluate_every: Count | None = None
    accumulate: Few = 1
    precision: Literal["float32", "bfloat16"] = "float32"
    initialization_scale: PositiveFloat = 1.0
    augment: Moves = "none"
    cutout: Count | None = None
    mixup: PositiveFloat | None = None
    checkpoint_every: Count | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_some_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("epochs") is given.get("steps") is None:
            return {**given, "epochs": EPOCHS}
        return given

    @model_validator(mode="after")
    def _one_length(self) -> "TrainSpec":
        if self.epochs is not None and self.steps is not None:
            raise ValueError(
                f"epochs={self.epochs} and steps={self.steps} both say how long a run is; leave "
                "out one of them"
            )
        if self.evaluate_every is not None and self.steps is None:
            raise ValueError(
                f"evaluate_every={self.evaluate_every} counts steps, but the run is "
                f"{self.epochs} epochs long; give steps instead of epochs, or validate_every"
            )
        if self.steps is not None and self.validate_every != 1:
            raise ValueError(
                f"validate_every={self.validate_every} counts epochs, but the run is "
                f"{self.steps} steps long; give evaluate_every instead"
            )
        return self

    @property
    def augmentation(self) -> Augmentation:
        """How training images are changed at random."""
        return Augmentation(self.augment, self.cutout, self.mixup)

    def length(self, steps_per_epoch: int) -> Length:
        """Returns how long a run is, in steps."""
        return length_of(
            steps_per_epoch,
            epochs=self.epochs,
            steps=self.steps,
            validate_every=self.validate_every,
            evaluate_every=self.evaluate_every,
        )

    def refuse_uneven(self, batch_size: int) -> None:
        """Checks that a batch can be cut into micro-batches.

        Raises:
            ValueError: If some would have fewer examples than others.
        """
        if left := batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {batch_size} examples cannot be cut into train.accumulate="
                f"{self.accumulate} equal micro-batches; set data.batch_size="
                f"{batch_size - left + self.accumulate}, or train.accumulate to a number that "
                f"divides {batch_size}"
            )
