"""Float32 polynomial coefficients that the Triton and the CPU kernels share, lowest degree first.

All are minimax approximations. Those of the noise are derived from ``rng``.

log2(1 + f) - f is f times a polynomial in f for f in [0, 1), off by 5e-8. After rounding, log2 has
an absolute error of 1.6e-7, or a relative error of 1.6e-7 where |log2| > 1. Near log2 = 0 the
relative error may reach 1, but only the absolute error enters the states.

sin(pi f) is f times a polynomial in f^2, off by 8e-9, and cos(pi f) is a polynomial in f^2, off by
5e-8, both for f in [-1/2, 1/2].
"""

from __future__ import annotations

from fastmsgm import rng

LOG2_UNIT = 2.0**-24  # of the logarithm of a state
LOG2_MINUS_LINE = tuple(c / LOG2_UNIT for c in (
    0.4426898956298828, -0.7211660742759705, 0.47868552803993225, -0.3473072350025177,
    0.24187606573104858, -0.13753284513950348, 0.05206507816910744, -0.009310458786785603,
))  # fmt: skip
SIN_OF_HALF_TURNS = (
    3.141592502593994, -5.1677021980285645, 2.549957752227783, -0.5976253747940063,
    0.07643380761146545,
)  # fmt: skip
COS_OF_HALF_TURNS = (
    1.0, -4.934795379638672, 4.058447360992432, -1.3320624828338623, 0.22000809013843536,
)  # fmt: skip

# Box-Muller takes -log2 of a uniform in units of 2^-23, those of a float32's exponent bits.
MINUS_LOG2 = tuple(-(2.0**23) * c for c in rng.LOG2)
MINUS_2_LN_UNIT = -(2.0**-23) * rng.MINUS_2_LN2
