"""Statistics of turbulence: the energy spectrum of vorticity fields, and the flatness."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmsgm.evaluation.metrics.checks import check_samples
from fastmsgm.evaluation.metrics.memory import rows_at_a_time


def spectrum(fields: Tensor) -> tuple[Tensor, Tensor]:
    """Return the isotropic energy spectrum of the flows with these vorticity fields.

    E(k) = 1/2 sum |w(q)|^2 / |q|^2 over the wavevectors q with |q| in [k - 1/2, k + 1/2), averaged
    over the fields, on the periodic square of side 2 pi. The sum over all k, corners included, is
    the mean kinetic energy <|u|^2> / 2. The enstrophy spectrum is close to k^2 E(k). For the ratio
    of two spectra it does not matter which of them is taken.

    Args:
        fields: (n, channels, size, size) float, size >= 4. Channels are averaged.

    Returns:
        The wavenumbers 1, 2 .. (size - 1) // 2, whose shells are complete, and E at each, both
        float64 on the device of the fields.

    Raises:
        TypeError: The fields are not of floating point.
        ValueError: A wrong shape, no fields, or values that are not finite.

    Example:
        >>> x = torch.linspace(0, 2 * torch.pi, 9, dtype=torch.float64)[:8]
        >>> k, energy = spectrum(2 * torch.cos(2 * x).expand(1, 1, 8, 8))
        >>> energy.round(decimals=6).tolist()  # the velocity is sin(2 x), so E = 1/4
        [0.0, 0.25, 0.0]
    """
    flat = check_samples("fields", fields, 1)
    if fields.ndim != 4 or fields.shape[2] != fields.shape[3] or fields.shape[3] < 4:
        raise ValueError(
            "fields must have shape (n, channels, size, size) with size >= 4, got "
            f"{tuple(fields.shape)}: add the axis of channels with fields[:, None]"
        )
    size = fields.shape[3]
    planes = flat.view(-1, size, size)
    power = torch.zeros(size, size, dtype=torch.float64, device=fields.device)
    for block in planes.split(rows_at_a_time(size**2)):
        power += torch.fft.fft2(block, norm="forward").abs().square().sum(0)
    power /= len(planes)
    axis = torch.fft.fftfreq(size, 1 / size, dtype=torch.float64, device=fields.device)
    square = axis[:, None].square() + axis.square()
    energy = torch.where(square > 0, power / (2 * square), 0.0)
    shells = (square.sqrt() + 0.5).long().flatten()
    sums = energy.new_zeros(int(shells.max()) + 1).index_add_(0, shells, energy.flatten())
    k = torch.arange(1, (size - 1) // 2 + 1, dtype=torch.int64, device=fields.device)
    return k.double(), sums[k]


def flatness(x: Tensor) -> float:
    """Return the flatness (kurtosis) <(x - m)^4> / <(x - m)^2>^2 of all numbers, m their mean.

    It is 3 for a Gaussian field, and above 3 where coherent structures and filaments make large
    values more frequent.

    Args:
        x: (n, ...) float, not all equal.

    Raises:
        TypeError: x is not of floating point.
        ValueError: A wrong shape, no samples, values that are not finite, or values that are all
            equal.
    """
    flat = check_samples("x", x, 1)
    mean = flat.mean()
    blocks = flat.split(rows_at_a_time(flat.shape[1]))
    sums = torch.stack([torch.stack([(b - mean).pow(p).sum() for p in (2, 4)]) for b in blocks])
    second, fourth = sums.sum(0)
    if not second > 0:
        raise ValueError(f"x must have values that differ, got {float(mean)} everywhere")
    return float(fourth / second.square() * flat.numel())
