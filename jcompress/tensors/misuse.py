"""What a compressed leaf says when it is used as the array that it stands for."""

from typing import Any, NoReturn


class NotAnArray:
    """Raises TypeError, with the way out, where an array would be indexed or computed.

    Without it Python and NumPy speak of unsupported operands, or make an array of
    objects, and JAX of a type that it does not know.
    """

    def _refuse(self, what: str) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__}: a compressed leaf is not an array and cannot be "
            f"{what}; call compressed(fn)(params, ...) for the function that does so, "
            "or take leaf.dense()"
        )

    def __getitem__(self, index: Any) -> NoReturn:
        self._refuse("indexed")

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        self._refuse("made an array")

    def __jax_array__(self) -> NoReturn:
        self._refuse("given to JAX's functions")

    def _compute(self, *args: Any) -> NoReturn:
        self._refuse("computed with")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _compute
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _compute
    __matmul__ = __rmatmul__ = __pow__ = __rpow__ = __mod__ = __rmod__ = _compute
    __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _compute
