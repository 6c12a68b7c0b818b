import hashlib

import numpy as np

from jcompress.recipes import load_digits


def test_every_image_is_in_one_part_and_the_parts_are_stratified():
    digits = load_digits()
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part) for part in parts] == [1081, 271, 445]
    for part in parts:
        assert part.images.shape == (len(part), 8, 8, 1)
        assert part.images.dtype == np.float32
        assert part.labels.dtype == np.int32
        assert part.images.min() == 0
        assert part.images.max() == 1
        shares = np.bincount(part.labels, minlength=10) / len(part)
        assert np.all(np.abs(shares - 0.1) < 0.01)


def test_no_image_is_in_two_parts():
    digits = load_digits()
    train, validation, test = (
        {image.tobytes() for image in part.images}
        for part in (digits.train, digits.validation, digits.test)
    )
    assert not train & test
    assert not train & validation
    assert not validation & test


def test_the_split_does_not_move():
    labels = load_digits().test.labels.astype(np.uint8).tobytes()
    images = load_digits().test.images.tobytes()
    assert hashlib.sha256(labels + images).hexdigest()[:16] == "c00708037395217f"
