"""Distances between two sets of samples, and their tails.

    Frechet                  |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), of the
                             Gaussians with the sets' moments (Dowson & Landau, 1982; on the
                             features of a network, Heusel et al., 2017)
    sliced Wasserstein       (E_u W_2^2(u.a, u.b))^1/2, u uniform on the sphere (Bonneel et al.,
                             2015)
    squared MMD              E k(a, a') + E k(b, b') - 2 E k(a, b) (Gretton et al., 2012)
    Kolmogorov-Smirnov       sup |F_a - F_b|
    survival                 P(|x| > r)
    conditional directions   sliced Wasserstein, precision and recall (Kynkaanniemi et al., 2019) of
                             x / |x| given that |x| is beyond a quantile
    angle to nearest axis    min_j arccos |a_j.x| / (|a_j| |x|)
    energy spectrum          E(k) of vorticity fields, and their flatness

Frechet and sliced Wasserstein are biased upwards for finite samples: compare them with the distance
between two real sets of the same sizes. The MMD is unbiased and comes with its standard error.
Conditional directions come with their floor, the same figures of two halves of the reference.
"""

from fastmsgm.evaluation.metrics.extremes import (
    ConditionalDirections,
    angle_to_nearest_axis,
    conditional_directions,
    directions,
)
from fastmsgm.evaluation.metrics.frechet import frechet_distance
from fastmsgm.evaluation.metrics.mmd import mmd, msgm_mmd
from fastmsgm.evaluation.metrics.norms import kolmogorov_smirnov, survival
from fastmsgm.evaluation.metrics.turbulence import flatness, spectrum
from fastmsgm.evaluation.metrics.wasserstein import sliced_wasserstein

__all__ = [
    "ConditionalDirections",
    "angle_to_nearest_axis",
    "conditional_directions",
    "directions",
    "flatness",
    "frechet_distance",
    "kolmogorov_smirnov",
    "mmd",
    "msgm_mmd",
    "sliced_wasserstein",
    "spectrum",
    "survival",
]
