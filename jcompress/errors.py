"""The error that every transform raises when rules, plans and trees do not fit."""

__all__ = ["MismatchError"]


class MismatchError(ValueError):
    """What was asked for does not fit the parameters.

    A rule matches nothing, a spec cannot apply to a leaf that its rule matches, a leaf
    is absent or of another shape than the sites or the plan say, or nothing would be
    changed. The message names the transform, the leaf, what arrived and what would
    work; it is raised before any work is done. A spec that makes no sense whatever the
    parameters are raises a plain ValueError when it is made.
    """
