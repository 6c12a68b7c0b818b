"""Orthogonal matrices that spread one number over all: Hadamard's, and random ones."""

from typing import Any

import jax
import numpy as np

Matrix = np.ndarray[Any, np.dtype[np.float64]]


def random_hadamard(key: jax.Array, size: int) -> Matrix:
    """A Hadamard matrix with random signs, or what comes near, divided by its norm.

    A power of two is Sylvester's construction, times Paley's for sizes such as 12, 20
    and 28. Of other sizes the odd factor is a random orthogonal matrix.

    Args:
        key: for the signs, and the random factor.
        size: how many rows it has.

    Returns:
        float64 [size, size], orthogonal.

    References:
        Paley 1933, "On Orthogonal Matrices"; Ashkboos et al. 2024, "QuaRot:
        Outlier-Free 4-Bit Inference in Rotated LLMs", section 3.
    """
    signs, rest = jax.random.split(key)
    base: Matrix = np.ones((1, 1))
    odd = size
    while odd % 2 == 0 and _paley(odd) is None:
        base, odd = _kron(base, np.array([[1.0, 1.0], [1.0, -1.0]])), odd // 2
    known = _paley(odd) if odd > 1 else np.ones((1, 1))
    part = _random(rest, odd) if known is None else known
    whole = _kron(base, part)
    picked = np.asarray(jax.random.bernoulli(signs, shape=(size,)))
    scale = np.where(picked, 1.0, -1.0) / np.sqrt(np.square(whole[0]).sum())
    made: Matrix = whole * scale[:, None]
    return made


def random_with_fixed_mean(key: jax.Array, size: int) -> Matrix:
    """A random orthogonal matrix that leaves the vector of ones as it is.

    It commutes with taking away the mean, as a layer normalization does.

    Args:
        key: for the matrix.
        size: how many rows it has.

    Returns:
        float64 [size, size], orthogonal; rows and columns sum to 1.
    """
    ones = np.full((size, 1), size**-0.5)
    bases = []
    for one in jax.random.split(key):
        normal = np.asarray(jax.random.normal(one, (size, size - 1))).astype(np.float64)
        bases.append(np.linalg.qr(np.concatenate([ones, normal], axis=1))[0][:, 1:])
    made: Matrix = ones @ ones.T + bases[0] @ bases[1].T
    return made


def _kron(a: Matrix, b: Matrix) -> Matrix:
    return np.asarray(np.kron(a, b), np.float64)


def _random(key: jax.Array, size: int) -> Matrix:
    normal = np.asarray(jax.random.normal(key, (size, size))).astype(np.float64)
    q, r = np.linalg.qr(normal)
    made: Matrix = q * np.sign(np.diagonal(r))
    return made


def _paley(size: int) -> Matrix | None:
    """A Hadamard matrix of a size that is 4 n but no power of two, if Paley has it."""
    if size % 4 or size & (size - 1) == 0:
        return None
    if _is_prime(size - 1) and (size - 1) % 4 == 3:
        residues = _residues(size - 1)
        skew = np.zeros((size, size))
        skew[0, 1:], skew[1:, 0], skew[1:, 1:] = 1, -1, residues
        return skew + np.eye(size)
    prime = size // 2 - 1
    if _is_prime(prime) and prime % 4 == 1:
        even = np.zeros((prime + 1, prime + 1))
        even[0, 1:], even[1:, 0], even[1:, 1:] = 1, 1, _residues(prime)
        both = np.array([[1.0, 1.0], [1.0, -1.0]])
        turn = np.array([[1.0, -1.0], [-1.0, -1.0]])
        return _kron(even, both) + _kron(np.eye(prime + 1), turn)
    return None


def _residues(prime: int) -> Matrix:
    """Whether differences are squares modulo a prime: 1, or -1, and 0 for none."""
    squares = {n * n % prime for n in range(1, prime)}
    numbers = np.arange(prime)
    table = np.array([0, *(1 if n in squares else -1 for n in range(1, prime))])
    found: Matrix = table[(numbers[:, None] - numbers[None]) % prime].astype(np.float64)
    return found


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
