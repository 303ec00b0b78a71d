"""Constants that the kernels, the reference and the angle tables share."""

import math

LN2 = math.log(2.0)
LOG2_E = 1 / LN2

# The smallest and the largest normal float32.
TINY = 2.0**-126
HUGE = 2.0**128 - 2.0**104
# The kernels' ``magnitude(x)`` is at least this for normal numbers, and below it for zero,
# denormals, infinity and NaN.
NORMAL = -0x7E000000
# Adding this to a float32 of magnitude up to 2^22 rounds it to an integer, held in the low bits.
ROUND_TO_INTEGER = 1.5 * 2.0**23

SHORTEST = 1e-30  # a squared length: shorter vectors have no direction
Z_MAX = 6.0  # angle tables have columns for z = -Z_MAX .. Z_MAX; the tails beyond weigh 2e-9
# From this many features on, noise is far from parallel to a direction: one projection is enough.
MANY_FEATURES = 64
# Largest angle of a ring's flow in half turns. The noise coefficient is limited to an eighth of it.
LARGEST_ANGLE = 8192.0
# Largest exponent of an exponentiated-gradient step: the factor is a normal float32.
LARGEST_EXPONENT = 80.0
