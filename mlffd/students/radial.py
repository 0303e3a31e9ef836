"""Radial functions, smooth cutoffs and real spherical harmonics of edges. Edges are the last axis."""

import math

import torch
from torch import Tensor


def polynomial_cutoff(distance: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Envelope that falls from 1 at r = 0 to 0 at ``cutoff`` with two vanishing derivatives there.

    Gasteiger et al., "Directional message passing", ICLR 2020, eq. 8. Zero beyond the cutoff.
    """
    x = distance / cutoff
    series = torch.zeros_like(x)
    for k in reversed(range(power)):  # the published polynomial with (1 - x)^3 drawn out: no cancellation
        series = series * x + (k + 1) * (k + 2) / 2
    left = torch.relu(1.0 - x)
    return left * left * left * series


def bessel_basis(distance: Tensor, cutoff: float, n_radial: int) -> Tensor:
    """sqrt(2 / r_c) sin(n pi r / r_c) / r times the envelope, for n = 1 ... n_radial: (n_radial, n_edges).

    Gasteiger et al., ICLR 2020, eq. 7. ``distance`` (n_edges,) in Å, greater than zero.
    """
    n = torch.arange(1, n_radial + 1, dtype=distance.dtype, device=distance.device)
    waves = torch.sin((math.pi / cutoff) * n[:, None] * distance)
    return waves * (math.sqrt(2.0 / cutoff) * polynomial_cutoff(distance, cutoff) / distance)


def spherical_harmonics(unit_vectors: Tensor, l_max: int) -> Tensor:
    """Real spherical harmonics up to ``l_max`` <= 3, normalized so that the sum over m of Y_lm^2 is 1.

    ``unit_vectors`` (n_edges, 3) -> ((l_max + 1)^2, n_edges), row l^2 + l + m, m = -l ... l.
    """
    x, y, z = unit_vectors.unbind(1)
    rows = [torch.ones_like(x)]
    if l_max >= 1:
        rows += [y, z, x]
    if l_max >= 2:
        xy, yz, xz, x2, y2, z2 = x * y, y * z, x * z, x * x, y * y, z * z
        root3 = math.sqrt(3.0)
        rows += [root3 * xy, root3 * yz, 1.5 * z2 - 0.5, root3 * xz, 0.5 * root3 * (x2 - y2)]
    if l_max >= 3:
        a, b, c = math.sqrt(5.0 / 8.0), math.sqrt(15.0), math.sqrt(3.0 / 8.0)
        rows += [
            a * y * (3.0 * x2 - y2),
            b * xy * z,
            c * y * (5.0 * z2 - 1.0),
            z * (2.5 * z2 - 1.5),
            c * x * (5.0 * z2 - 1.0),
            0.5 * b * z * (x2 - y2),
            a * x * (x2 - 3.0 * y2),
        ]
    return torch.stack(rows)
