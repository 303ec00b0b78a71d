# pyright: reportOperatorIssue=false
"""Triton device functions: the two ways to move a direction, exact flow and exponential map.

Both return the new u, the memory for the next step, and which rows are non-finite. ``table_ptr``
points to the row of the step.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import HALF_TURNS, LOG2_E, sine_cosine_of_half_turns
from .rows import SHORTEST, combine, dot, inverse_norm, measure


@triton.jit
def flow(u, f, prev, table_ptr, D: tl.constexpr):
    """u after the exact flow towards D_w; D; and which rows are non-finite.

    Without ``prev`` the terms in w are left out.
    """
    alpha, sigma, length = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 3)
    scale = inverse_norm(u, D)
    f_u = dot(f, u, D) * scale
    gain, along, radial = sigma, alpha, -sigma * f_u
    if prev is not None:
        w, prev_u = tl.load(table_ptr + 2), dot(prev, u, D) * scale
        gain, along, radial = (
            gain + w * gain,
            along + w * (along - prev_u),
            radial + w * (radial + prev_u),
        )
        tangent = combine((gain, radial * scale, -w), (f, u, prev))
    else:
        tangent = combine((gain, radial * scale), (f, u))

    # ``half`` is the tangent of half the angle between u and D_w, ``moved_half`` that of half the
    # angle by which u moves.
    rest, square = measure(tangent, u, scale, D)
    whole = square + along * along
    size, width = tl.sqrt(whole), tl.sqrt(square)
    still = square <= tl.maximum(whole, 1.0) * SHORTEST
    ahead = along >= 0.0
    half = tl.where(ahead, width, size - along) / tl.where(ahead, size + along, width)
    left = tl.exp2(-size * length * LOG2_E)
    moved_half = half * (1.0 - left) / (1.0 + half * half * left)
    share = 1.0 / (1.0 + moved_half * moved_half)
    b = tl.where(still, 0.0, 2.0 * moved_half * share * tl.rsqrt(square))
    a = (tl.where(still, 1.0, (1.0 - moved_half * moved_half) * share) - b * rest) * scale

    nonfinite = ~(whole < float("inf"))
    kept = (alpha - sigma * f_u) * scale
    a, kept = tl.where(nonfinite, float("nan"), a), tl.where(nonfinite, float("nan"), kept)
    return combine((a, b), (u, tangent)), combine((sigma, kept), (f, u)), nonfinite


@triton.jit
def _circle(square):
    """cos t, sin t / t and (1 - cos t) / t^2 from t^2.

    They are computed from the sine and cosine of t / 2, whose common sign cancels.
    """
    half_turns = tl.sqrt(square) * (0.5 * HALF_TURNS)
    sine, cosine = sine_cosine_of_half_turns(half_turns - tl.floor(half_turns + 0.5))
    versine, product = 2.0 * sine * sine, 2.0 * sine * cosine
    small = square <= SHORTEST
    return (
        1.0 - versine,
        tl.where(small, 1.0, product * tl.rsqrt(square)),
        tl.where(small, 0.5, versine / square),
    )


@triton.jit
def exponential_map(u, f, prev, xi, table_ptr, D: tl.constexpr):
    """u after the geodesic step; the velocity there; and which rows are non-finite.

    Without ``prev`` the terms in w and back are left out. The coefficients are first those of u, of
    the velocity at u (without its radial residual ``rest``), and of p = -back prev, the tangent
    vector to the start; ``way`` is |p|^2.
    """
    drift, noise = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
    scale = inverse_norm(u, D)
    if prev is not None:
        velocity = combine((drift, noise, tl.load(table_ptr + 2)), (f, xi, prev))
    else:
        velocity = combine((drift, noise), (f, xi))
    velocity = combine((1.0, -dot(velocity, u, D) * scale * scale), (velocity, u))
    rest, square = measure(velocity, u, scale, D)
    cos, sinc, _ = _circle(square)
    if prev is not None:
        back = tl.load(table_ptr + 6)
        prev_u, overlap = dot(prev, u, D) * scale, dot(prev, velocity, D)
        way = back * back * tl.abs(dot(prev, prev, D) - prev_u * prev_u)
        cos_way, sinc_way, cosc_way = _circle(way)
        on_way, t_sin = -back * (overlap - rest * prev_u), square * sinc
        a = cos * cos_way - sinc * on_way * sinc_way
        a_prev = -cos * on_way * sinc_way - t_sin * cos_way
        c = -back * (cos * sinc_way - sinc * on_way * cosc_way)
        c_prev = back * (cos * on_way * cosc_way + t_sin * sinc_way)
        nonfinite = ~(square + way < float("inf"))
        a = tl.where(nonfinite, float("nan"), (a - sinc * rest - c * prev_u) * scale)
        a_prev = tl.where(nonfinite, float("nan"), (a_prev - cos * rest - c_prev * prev_u) * scale)
        rows = (u, velocity, prev)
        return combine((a, sinc, c), rows), combine((a_prev, cos, c_prev), rows), nonfinite
    else:
        nonfinite = ~(square < float("inf"))
        a = tl.where(nonfinite, float("nan"), (cos - sinc * rest) * scale)
        return combine((a, sinc), (u, velocity)), velocity, nonfinite
