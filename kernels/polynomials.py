"""Coefficients that the Triton and the CPU kernels share, of float32, lowest degree first; the noise's are in ``rng``.

log2(1 + f) - f is f times a polynomial in f, for f in [0, 1), times 2^24: minimax, off by 5e-8. With what is rounded,
log2 is off by 1.6e-7, or as much of itself where it is beyond 1; near 0 that may be all of it, but states see absolute
errors.
sin(pi f) is f times a polynomial in f^2, and cos(pi f) one in f^2, for f in [-1/2, 1/2]: minimax, 8e-9 and 5e-8.
"""

from __future__ import annotations

LOG2_UNIT = 2.0**-24
LOG2_MINUS_LINE = tuple(c / LOG2_UNIT for c in (
    0.4426898956298828, -0.7211660742759705, 0.47868552803993225, -0.3473072350025177, 0.24187606573104858,
    -0.13753284513950348, 0.05206507816910744, -0.009310458786785603,
))  # fmt: skip
SIN_OF_HALF_TURNS = (
    3.141592502593994, -5.1677021980285645, 2.549957752227783, -0.5976253747940063, 0.07643380761146545,
)  # fmt: skip
COS_OF_HALF_TURNS = (1.0, -4.934795379638672, 4.058447360992432, -1.3320624828338623, 0.22000809013843536)
