"""The embedded digits: 1,797 images of 8 x 8 pixels in ten classes."""

import dataclasses
import functools
import importlib.resources

import numpy as np

CLASSES = 10
"""Number of classes: the digits 0 to 9."""

_Array = np.ndarray[tuple[int, ...], np.dtype[np.generic]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Images and their labels.

    Attributes:
        images: float32 [N, 8, 8, 1] in [0, 1].
        labels: int32 [N] in 0 to 9.
    """

    images: _Array
    labels: _Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Digits:
    """The digits, split once and for all.

    Attributes:
        train: what parameters are fitted to, 60 % of each class.
        validation: what hyperparameters and epochs are judged by, 15 % of each class.
        test: what is reported, 25 % of each class.
    """

    train: Examples
    validation: Examples
    test: Examples


@functools.cache
def load_digits() -> Digits:
    """The embedded digits data, see `digits.md` for its source and licence.

    The split is stratified and depends on nothing but the file: the images of each
    class, in the order of the file, are dealt out in rounds of twenty, of which the
    places in `_TEST` go to the test part and those in `_VALIDATION` to validation.
    """
    file = importlib.resources.files("jcompress.recipes") / "digits.npz"
    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        images, labels = archive["images"], archive["labels"]
    place = np.zeros(len(labels), np.int64)
    for digit in range(CLASSES):
        same = labels == digit
        place[same] = np.arange(same.sum()) % _ROUND
    test = np.isin(place, _TEST)
    validation = np.isin(place, _VALIDATION)

    def part(chosen: _Array) -> Examples:
        return Examples(
            images=(images[chosen, :, :, None] / np.float32(16)).astype(np.float32),
            labels=labels[chosen].astype(np.int32),
        )

    return Digits(
        train=part(~(test | validation)),
        validation=part(validation),
        test=part(test),
    )


_ROUND = 20
_TEST = (3, 7, 11, 15, 19)
_VALIDATION = (1, 9, 17)
