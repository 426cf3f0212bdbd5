"""Sets that Hugging Face's `datasets` saved to disk."""

import numpy as np
import pytest
from PIL import Image

from normlab.data import DataError, DataSpec, load


@pytest.mark.hf
def test_a_saved_set_is_read_streamed_or_not(tmp_path):
    datasets = pytest.importorskip("datasets", reason="datasets comes with the extra `hf`")

    rng = np.random.default_rng(0)
    parts, told = {}, {}
    for split, count in ("train", 20), ("test", 8):
        images = rng.integers(0, 256, (count, 4, 4, 3), np.uint8)
        told[split] = images, np.arange(count) % 3
        features = datasets.Features(
            {"img": datasets.Array3D((4, 4, 3), "uint8"), "label": datasets.ClassLabel(3)}
        )
        columns = {"img": images, "label": told[split][1]}
        parts[split] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "arrays")
    encoded = {
        split: datasets.Dataset.from_dict(
            {"image": [Image.fromarray(it) for it in images], "label": labels, "more": labels},
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.Value("int64"),
                    "more": datasets.Value("int64"),
                }
            ),
        )
        for split, (images, labels) in told.items()
    }
    datasets.DatasetDict(encoded).save_to_disk(tmp_path / "images")
    images, labels = (np.concatenate(it) for it in zip(*told.values(), strict=True))
    order = rng.permutation(len(images))
    for folder in ("arrays", "images"):
        for stream in (False, True):
            spec = DataSpec(name="hf", folder=str(tmp_path / folder), batch_size=4, stream=stream)
            dataset = load(spec)
            np.testing.assert_array_equal(dataset.images[order], images[order])
            np.testing.assert_array_equal(dataset.labels, labels)
            assert dataset.images.dtype == np.uint8
    parts["train"].save_to_disk(tmp_path / "one")
    with pytest.raises(DataError, match=r"has the splits \(none\); expected train and test"):
        load(DataSpec(name="hf", folder=str(tmp_path / "one"), batch_size=4))
