"""Noise: a counter-based stream, in which seed and counter determine every normal.

Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") turns a 128-bit
counter and a 64-bit key (the seed) into four 32-bit words. Pairs of words become pairs of normals
by Box-Muller. The words of the counter are

    w0 = feature // 4    w1 = sample mod 2^32    w2 = purpose * 2^24 + sample // 2^32    w3 = step,

so sample i of seed s gets the same noise on every device, in every batch and on every rank. This
module defines the stream ``philox-v1``. The Triton and numba kernels implement it too and are
tested against this module word for word.

A ``stream`` is an int64 tensor ``[seed, first sample, first step]`` on the device of the samples.
The 64 bits of the seed are stored as a signed integer. Operations count steps from the first step.
Since that is on the device, a loop over steps needs no data from the host.
"""

from __future__ import annotations

import functools
import math
from enum import IntEnum

import torch
from torch import Tensor

from fastmsgm.checks import check_int

STREAM_VERSION = "philox-v1"
MAX_SAMPLES = 2**56


class Purpose(IntEnum):
    """What the noise is for: the purpose byte of the counter. The values are frozen."""

    PRIOR = 0
    RADIUS = 1
    STEP = 2
    ANGLE = 3
    TRAINING_NOISE = 4
    TRAINING_ANGLE = 5
    TRAINING_TIME = 6
    PROBE = 7
    DATA_ORDER = 8
    AUGMENTATION = 9
    CONDITION_DROP = 10


# Philox4x32: multipliers, and the Weyl constants added to the key between rounds.
ROUNDS = 10
PHILOX_M0, PHILOX_M1 = 0xD2511F53, 0xCD9E8D57
PHILOX_W0, PHILOX_W1 = 0x9E3779B9, 0xBB67AE85

# Minimax polynomials (Remez) with their relative errors, lowest degree first.
# log2(1 + f) = f * P(f) for 1 + f in [sqrt(1/2), sqrt(2)): 2.6e-8.
LOG2 = (
    1.4426950216293335, -0.7213473320007324, 0.48091062903404236, -0.3607036769390106,
    0.28791624307632446, -0.23894481360912323, 0.21571560204029083, -0.20726975798606873,
    0.1258370578289032,
)  # fmt: skip
# sin(pi/4 f) = f * P(f^2): 3.2e-9, and cos(pi/4 f) = P(f^2): 2.8e-8, for f in [-1, 1].
SIN = (0.7853981852531433, -0.08074543625116348, 0.00249000103212893, -3.59504520019982e-05)
COS = (1.0, -0.3084242641925812, 0.015849914401769638, -0.0003188805130776018)
SQRT_HALF_BITS = 0x3F3504F3  # float32(sqrt(1/2)), the lower end of the logarithm's mantissas
MINUS_2_LN2 = -2.0 * math.log(2.0)

_MASK = 0xFFFFFFFF


def stream(seed: int, start: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return the tensor ``[seed, start, 0]`` that every operation with noise takes.

    Args:
        seed: 0 .. 2^64 - 1.
        start: Global index of the first sample, 0 .. 2^56 - 1.
        device: Device of the samples.

    Raises:
        TypeError: seed or start is not an int.
        ValueError: seed or start is out of range.
    """
    seed = check_int("seed", seed, 0, 2**64 - 1)
    start = check_int("start", start, 0, MAX_SAMPLES - 1)
    signed = seed - 2**64 if seed >= 2**63 else seed
    return torch.tensor([signed, start, 0], dtype=torch.int64, device=device)


def by_step(stream: Tensor, steps: int) -> Tensor:
    """Return the streams of ``steps`` steps, (steps, 3): row k starts k steps after ``stream``.

    Rows begin at multiples of 16 bytes.
    """
    rows = stream.new_empty(steps, 4)[:, :3]
    rows.copy_(stream)
    rows[:, 2] += torch.arange(steps, dtype=torch.int64, device=stream.device)
    return rows


def substep(step: int, steps: int, k: int) -> int:
    """Return the noise counter of part k of a step that is divided into ``steps`` parts.

    The counters 2^31 and above are those of evaluation, as ``step`` is or is not.
    """
    return (step & 2**31) | ((step * steps + k) % 2**31)


def row_of(table: Tensor, stream: Tensor, step: int) -> Tensor:
    """Return the row of ``table`` at a step, counted from the stream's first."""
    return table.index_select(0, stream[2:3] + step)[0]


def philox(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, ...]:
    """Return the four words of ten rounds of Philox4x32, in the shape of the counter's words.

    Args:
        counter: Four int64 tensors of one shape that hold 32-bit words.
        key: Two int64 scalar tensors that hold the halves of the seed, the low one first.
    """
    c0, c1, c2, c3 = counter
    pair = (2, *[1] * c0.ndim)
    factors, bumps = _constants(c0.device)
    factors, keys = factors.view(pair), (torch.stack(key) + bumps).view(-1, *pair)  # by round
    even, odd = torch.stack((c0, c2)), torch.stack((c1, c3))
    for k in keys:  # the mask also drops the bits above 32 of odd and of the keys
        product = even.flip(0) * factors  # wraps mod 2^64, so the bits are right
        even, odd = ((product >> 32) ^ odd ^ k) & _MASK, product
    odd = odd & _MASK
    return even[0], odd[0], even[1], odd[1]


@functools.cache
def _constants(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the multipliers of c2 and c0, and the multiples of the Weyl constants (ROUNDS, 2)."""
    weyl = torch.tensor((PHILOX_W0, PHILOX_W1), dtype=torch.int64, device=device)
    rounds = torch.arange(ROUNDS, dtype=torch.int64, device=device)[:, None]
    factors = torch.tensor((PHILOX_M1, PHILOX_M0), dtype=torch.int64, device=device)
    return factors, rounds * weyl


def words(n: int, quads: int, stream: Tensor, purpose: int, step: int) -> Tensor:
    """Return the Philox words of n samples, int64 (n, quads, 4) with values 0 .. 2^32 - 1.

    Args:
        n: Number of samples.
        quads: Number of groups of four features.
        stream: (3,) int64, the noise stream.
        purpose: The purpose byte of the counter (``Purpose``).
        step: The step, counted from the stream's first.
    """
    sample = stream[1] + torch.arange(n, dtype=torch.int64, device=stream.device)
    quad = torch.arange(quads, dtype=torch.int64, device=stream.device)
    w0, sample = torch.broadcast_tensors(quad[None, :], sample[:, None])
    counter = (
        w0,
        sample & _MASK,
        (purpose << 24) + (sample >> 32),
        ((stream[2] + step) & _MASK).expand_as(w0),
    )
    key = (stream[0] & _MASK, (stream[0] >> 32) & _MASK)
    return torch.stack(philox(counter, key), dim=-1)


def uniforms(n: int, quads: int, stream: Tensor, purpose: int, step: int = 0) -> Tensor:
    """Return the uniforms (word + 1/2) / 2^32 in (0, 1), float64 (n, 4 quads).

    Arguments as of ``words``.
    """
    return ((words(n, quads, stream, purpose, step).double() + 0.5) * 2.0**-32).reshape(
        n, 4 * quads
    )


def normals(
    n: int, d: int, stream: Tensor, purpose: int, step: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return standard normals (n, d) from the words of ``words``; |z| <= 6.77.

    Args:
        n: Number of samples.
        d: Number of features.
        stream: (3,) int64, the noise stream.
        purpose: The purpose byte of the counter (``Purpose``).
        step: The step, counted from the stream's first.
        dtype: float32 computes as the stream defines, with the polynomials above. float64 evaluates
            exact functions at the same float32 uniforms and angles; the tests compare with it.
    """
    w = words(n, -(-d // 4), stream, purpose, step)
    radius_word, angle_word = w[..., 0::2], w[..., 1::2]
    u = radius_word.float() * 2.0**-32 + 2.0**-33
    # The angle is pi/2 * (quadrant + f/2) with the nearest quadrant, so f is in [-1, 1).
    quadrant = (angle_word + 2**29) >> 30
    f = (angle_word - (quadrant << 30)).float() * 2.0**-29
    if dtype == torch.float64:
        radius = torch.sqrt(-2.0 * torch.log(u.double()))
        sine, cosine = torch.sin(math.pi / 4 * f.double()), torch.cos(math.pi / 4 * f.double())
    else:
        radius = torch.sqrt(MINUS_2_LN2 * _log2(u))
        sine, cosine = f * _polynomial(SIN, f * f), _polynomial(COS, f * f)
    swap = (quadrant & 1).bool()
    x = torch.where(swap, sine, cosine) * (1 - ((quadrant + 1) & 2))
    y = torch.where(swap, cosine, sine) * (1 - (quadrant & 2))
    return torch.stack((radius * x, radius * y), dim=-1).flatten(1)[:, :d]


def _log2(u: Tensor) -> Tensor:
    bits = u.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    return exponent + f * _polynomial(LOG2, f)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    result = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = result * x + c
    return result
