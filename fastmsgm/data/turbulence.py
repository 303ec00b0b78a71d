"""Two-dimensional turbulence: vorticity fields of a forced flow in a statistically steady state.

    dw/dt + u . grad w = f - a w - v (-Laplace / K^2)^4 w,    u = (d psi/dy, -d psi/dx),
    Laplace psi = -w,    on the square of side 2 pi with periodic boundaries

a = 0.05 is a linear drag and v = 5 a hyperviscosity, the rate at the largest wavenumber K = 64 / 3.
f is white in time and isotropic at wavenumbers 3 <= |k| < 5, with equal energy in every mode. It
puts in energy at the rate 0.05 exactly, so the mean energy is just below 0.05 / (2 a) = 0.5. Energy
goes to large scales, where the drag removes it. Enstrophy goes to small scales in a direct cascade
with filaments and coherent vortices (Boffetta & Ecke, "Two-dimensional turbulence", Annual Review
of Fluid Mechanics 44, 2012).

The energy spectrum of the direct cascade is k^-3 (Kraichnan, 1967). Linear drag makes it steeper,
k^-(3 + xi) with xi proportional to the drag (Nam, Ott, Antonsen & Guzdar, Physical Review Letters
84, 2000), and so do coherent vortices: simulations have exponents from -3 to -5 (Maltrud & Vallis,
Journal of Fluid Mechanics 228, 1991).

The solver is pseudo-spectral on 64 x 64 points in float32. Modes beyond a circle of two thirds of
the Nyquist wavenumber are removed, so that products have no aliasing errors, and the nonlinear term
conserves energy and enstrophy. Linear terms are exact by an integrating factor, the nonlinear term
is integrated by Runge-Kutta of order 4, and the forcing is added between steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastmsgm.checks import check_int
from fastmsgm.data.philox import Set, Words, normals

GRID = 64  # points along a side of the simulation
DRAG, VISCOSITY, ORDER = 0.05, 5.0, 4
BAND, POWER = (3.0, 5.0), 0.05  # wavenumbers of the forcing, and energy per time
SIZES = (4, 8, 16, 32)
UNIT = 2.7  # the vorticity that fields are divided by, close to its root mean square
TRAJECTORIES = 16  # integrated together, always all of them
STEP = 0.025
TRANSIENT, SPACING = 2400, 80  # steps before the first field, and between two of a trajectory


def turbulence(n: int, size: int = 32, seed: int = 0, progress: bool = False) -> Tensor:
    """Sample vorticity fields of forced two-dimensional turbulence.

    Sample i is of trajectory i mod 16, at time 60 + 2 floor(i / 16). The time of an eddy turnover,
    the reciprocal of the vorticity's root mean square, is 0.36. Neighbours in one trajectory have a
    correlation of 0.12. Sample i of a seed is the same for every n on one machine with one number
    of threads. Elsewhere rounding differs and the trajectories part after some time units, so only
    the distribution is the same.

    Wavenumbers of 16 and more in either direction are cut off, which loses 1.5 % of the variance.
    The field is then evaluated on size x size points. At size 32 all its wavenumbers are resolved,
    and E(k) has a slope of -4.1 over k = 5 .. 13. At smaller sizes the points are some of those at
    size 32, so the distribution at a point is the same, and spectra have aliases. The flatness is
    3.8 at every size.

    Args:
        n: Number of fields, >= 1. The first takes 8 seconds of one core, and 10,000 take 4 minutes.
        size: Points along a side: 4, 8, 16 or 32.
        seed: 0 .. 2^64 - 1.
        progress: Show a progress bar.

    Returns:
        (n, 1, size, size) float32, vorticity divided by 2.7. Its standard deviation is then 1.02.

    Raises:
        TypeError: n, size or seed is not an int.
        ValueError: An argument is out of range.
    """
    n, size = check_int("n", n, 1), check_int("size", size, 1)
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    words, flow = Words(seed, Set.TURBULENCE), Flow()
    vorticity = torch.zeros(TRAJECTORIES, GRID, GRID // 2 + 1, dtype=torch.complex64, device="cpu")
    times = -(-n // TRAJECTORIES)
    fields = torch.empty(times, TRAJECTORIES, 1, size, size, dtype=torch.float32, device="cpu")
    steps = TRANSIENT + (times - 1) * SPACING
    for step in tqdm(range(steps + 1), disable=not progress, desc="turbulence", unit="step"):
        after = step - TRANSIENT
        if after >= 0 and after % SPACING == 0:
            fields[after // SPACING, :, 0] = sampled(vorticity, size) / UNIT
        vorticity = flow.step(flow.force(vorticity, words))
    return fields.flatten(0, 1)[:n].contiguous()


class Flow:
    """The equation above, in the Fourier coefficients that ``torch.fft.rfft2`` returns.

    Args:
        drag: a, >= 0.
        viscosity: v, >= 0.
        power: Energy that the forcing puts in per time, >= 0.
        dtype: float32 or float64.
    """

    def __init__(
        self,
        drag: float = DRAG,
        viscosity: float = VISCOSITY,
        power: float = POWER,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        ky = torch.fft.fftfreq(GRID, 1 / GRID, dtype=torch.float64, device="cpu")[:, None]
        kx = torch.fft.rfftfreq(GRID, 1 / GRID, dtype=torch.float64, device="cpu")
        square = kx.square() + ky.square()
        kept = square < (GRID / 3) ** 2
        inverse = torch.where(kept & (square > 0), 1 / square, 0.0)
        self._velocity = (1j * torch.stack([ky * inverse, -kx * inverse])).to(dtype.to_complex())
        self._products = torch.stack([(kx.square() - ky.square()) * kept, kx * ky * kept]).to(dtype)
        rate = drag + viscosity * (square / (GRID / 3) ** 2) ** ORDER
        self._half_decay = (torch.exp(-rate * STEP / 2) * kept).to(dtype)

        # The forcing: independent coefficients of one of each pair of modes k and -k.
        wavenumber = square.sqrt()
        forced = (wavenumber >= BAND[0]) & (wavenumber < BAND[1]) & ((kx > 0) | (ky > 0))
        self._row, self._column = forced.nonzero().unbind(1)
        self._paired = self._column == 0  # rfft2 stores both modes of such a pair
        modes = 2 * len(self._row)
        self._amplitude = (GRID**2 * (2 * power * STEP / modes * square[forced]).sqrt()).numpy()
        self._dtype = dtype

    def nonlinear(self, vorticity: Tensor) -> Tensor:
        """Return the coefficients of -u . grad w, in Basdevant's form with four transforms.

        -u . grad w = (d^2/dy^2 - d^2/dx^2) (u v) + d^2/dxdy (u^2 - v^2) (Basdevant, Journal of
        Computational Physics 50, 1983).

        Args:
            vorticity: (..., 64, 33) complex.
        """
        u, v = (field(vorticity * factor) for factor in self._velocity)
        first, second = self._products
        return torch.fft.rfft2(u * v) * first + torch.fft.rfft2(v * v - u * u) * second

    def step(self, w: Tensor) -> Tensor:
        """Return the coefficients (..., 64, 33) a step later, without forcing."""
        half, h = self._half_decay, STEP
        k1 = half * self.nonlinear(w)
        w = half * w
        k2 = self.nonlinear(w + h / 2 * k1)
        k3 = self.nonlinear(w + h / 2 * k2)
        k4 = self.nonlinear(half * (w + h * k3))
        return half * (w + h / 6 * (k1 + 2 * (k2 + k3))) + h / 6 * k4

    def force(self, vorticity: Tensor, words: Words) -> Tensor:
        """Return the coefficients (n, 64, 33) with a step's forcing added."""
        n, modes = len(vorticity), len(self._row)
        z = normals(words.uniforms(n, 2 * modes)).reshape(n, modes, 2)
        parts = self._amplitude[:, None] * z / math.sqrt(2)
        noise = torch.view_as_complex(torch.from_numpy(parts).to(self._dtype))
        forced = vorticity.clone()
        forced[:, self._row, self._column] += noise
        forced[:, -self._row[self._paired], self._column[self._paired]] += noise[
            :, self._paired
        ].conj()
        return forced


def field(coefficients: Tensor) -> Tensor:
    """Return the field (..., 64, 64) of coefficients (..., 64, 33)."""
    return torch.fft.irfft2(coefficients, s=(GRID, GRID))


def sampled(coefficients: Tensor, size: int) -> Tensor:
    """Return the field on size x size points, of the wavenumbers below 16 in both directions.

    Args:
        coefficients: (..., 64, 33) complex.
        size: One of ``SIZES``.
    """
    finest = SIZES[-1]
    half = finest // 2
    kept = coefficients.new_zeros(*coefficients.shape[:-2], finest, half + 1)
    kept[..., :half, :half] = coefficients[..., :half, :half]
    kept[..., 1 - half :, :half] = coefficients[..., 1 - half :, :half]
    fine = torch.fft.irfft2(kept, s=(finest, finest)) * (finest / GRID) ** 2
    return fine[..., :: finest // size, :: finest // size]
