"""Coefficients that the Triton and the CPU kernels share, of float32, lowest degree first; the noise's are in ``rng``.

sin(pi f) is f times a polynomial in f^2, and cos(pi f) one in f^2, for f in [-1/2, 1/2]: minimax, 8e-9 and 5e-8.
"""

from __future__ import annotations

SIN_OF_HALF_TURNS = (
    3.141592502593994, -5.1677021980285645, 2.549957752227783, -0.5976253747940063, 0.07643380761146545,
)  # fmt: skip
COS_OF_HALF_TURNS = (1.0, -4.934795379638672, 4.058447360992432, -1.3320624828338623, 0.22000809013843536)
