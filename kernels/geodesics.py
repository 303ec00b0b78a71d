# pyright: reportOperatorIssue=false
"""Triton device functions: the two ways in which a step moves a direction, the exact flow and the exponential map.

Both return the new u, what the next row remembers, and which rows were lost. ``table_ptr`` is at the step's row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .maths import HALF_TURNS, LOG2_E, sine_cosine_of_half_turns
from .rows import SHORTEST, combine, dot, inverse_norm, measure


@triton.jit
def flow(u, f, past, table_ptr, D: tl.constexpr):
    """u after the exact flow to D_w, D, and which rows were lost; no ``past`` leaves its terms out."""
    alpha, sigma, length = tl.load(table_ptr), tl.load(table_ptr + 1), tl.load(table_ptr + 3)
    scale = inverse_norm(u, D)
    f_u = dot(f, u, D) * scale
    gain, along, radial = sigma, alpha, -sigma * f_u
    if past is not None:
        w, past_u = tl.load(table_ptr + 2), dot(past, u, D) * scale
        gain, along, radial = gain + w * gain, along + w * (along - past_u), radial + w * (radial + past_u)
        tangent = combine((gain, radial * scale, -w), (f, u, past))
    else:
        tangent = combine((gain, radial * scale), (f, u))

    # By the tangent of half the angle between u and D_w, and of half the angle by which u turns.
    rest, square = measure(tangent, u, scale, D)
    whole = square + along * along
    size, width = tl.sqrt(whole), tl.sqrt(square)
    still = square <= tl.maximum(whole, 1.0) * SHORTEST
    ahead = along >= 0.0
    half = tl.where(ahead, width, size - along) / tl.where(ahead, size + along, width)
    left = tl.exp2(-size * length * LOG2_E)
    turned = half * (1.0 - left) / (1.0 + half * half * left)
    share = 1.0 / (1.0 + turned * turned)
    b = tl.where(still, 0.0, 2.0 * turned * share * tl.rsqrt(square))
    a = (tl.where(still, 1.0, (1.0 - turned * turned) * share) - b * rest) * scale

    lost = ~(whole < float("inf"))
    kept = (alpha - sigma * f_u) * scale
    a, kept = tl.where(lost, float("nan"), a), tl.where(lost, float("nan"), kept)
    return combine((a, b), (u, tangent)), combine((sigma, kept), (f, u)), lost


@triton.jit
def _circle(square):
    """cos t, sin t / t, (1 - cos t) / t^2 for t^2, by sine and cosine of t / 2, up to their common sign."""
    half_turns = tl.sqrt(square) * (0.5 * HALF_TURNS)
    sine, cosine = sine_cosine_of_half_turns(half_turns - tl.floor(half_turns + 0.5))
    versine, product = 2.0 * sine * sine, 2.0 * sine * cosine
    small = square <= SHORTEST
    return 1.0 - versine, tl.where(small, 1.0, product * tl.rsqrt(square)), tl.where(small, 0.5, versine / square)


@triton.jit
def exponential_map(u, f, past, xi, table_ptr, D: tl.constexpr):
    """u after the geodesic step, the velocity there, and which rows were lost; no ``past`` leaves its terms out.

    With way = -back past: first the factors of u, of the velocity at u (without its rest) and of the way.
    """
    drift, noise = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
    scale = inverse_norm(u, D)
    if past is not None:
        velocity = combine((drift, noise, tl.load(table_ptr + 2)), (f, xi, past))
    else:
        velocity = combine((drift, noise), (f, xi))
    velocity = combine((1.0, -dot(velocity, u, D) * scale * scale), (velocity, u))
    rest, square = measure(velocity, u, scale, D)
    cos, sinc, _ = _circle(square)
    if past is not None:
        back = tl.load(table_ptr + 6)
        past_u, overlap = dot(past, u, D) * scale, dot(past, velocity, D)
        way = back * back * tl.abs(dot(past, past, D) - past_u * past_u)
        cos_way, sinc_way, fall = _circle(way)
        on_way, swing = -back * (overlap - rest * past_u), square * sinc
        a = cos * cos_way - sinc * on_way * sinc_way
        a_past = -cos * on_way * sinc_way - swing * cos_way
        c = -back * (cos * sinc_way - sinc * on_way * fall)
        c_past = back * (cos * on_way * fall + swing * sinc_way)
        lost = ~(square + way < float("inf"))
        a = tl.where(lost, float("nan"), (a - sinc * rest - c * past_u) * scale)
        a_past = tl.where(lost, float("nan"), (a_past - cos * rest - c_past * past_u) * scale)
        rows = (u, velocity, past)
        return combine((a, sinc, c), rows), combine((a_past, cos, c_past), rows), lost
    else:
        lost = ~(square < float("inf"))
        a = tl.where(lost, float("nan"), (cos - sinc * rest) * scale)
        return combine((a, sinc), (u, velocity)), velocity, lost
