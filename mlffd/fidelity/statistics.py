# SPDX-License-Identifier: MIT
"""Errors of averages over trajectories, whose frames are not independent."""

from collections.abc import Callable, Sequence

import numpy as np


def block_means(series: np.ndarray, n_blocks: int) -> np.ndarray:
    """Means (n_blocks, ...) over consecutive blocks of a series (n_frames, ...); the first frames that do not
    fill a block are left out. Fewer blocks where there are fewer frames."""
    n_blocks = max(min(n_blocks, len(series)), 1)
    length = len(series) // n_blocks
    kept = series[len(series) - n_blocks * length :]
    return kept.reshape(n_blocks, length, *series.shape[1:]).mean(axis=1)


def jackknife(blocks: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> tuple:
    """``function`` of the mean of blocks (n_blocks, ...), and its standard error by leaving out one at a time
    (Efron, The Jackknife, 1982, eq. 3.5); the error is nan for a single block."""
    n = len(blocks)
    value = function(blocks.mean(axis=0))
    if n < 2:
        return value, np.full(np.shape(value), np.nan)[()]
    total = blocks.sum(axis=0)
    without = np.array([function((total - block) / (n - 1)) for block in blocks])
    return value, np.sqrt((n - 1) / n * ((without - without.mean(axis=0)) ** 2).sum(axis=0))


def replica_jackknife(parts: Sequence[np.ndarray], function: Callable) -> tuple:
    """``jackknife`` of the blocks (n_blocks, ...) of several replicas. From three replicas on the error is
    the larger one of blocks and of whole replicas, which know of motions slower than a block."""
    value, error = jackknife(np.concatenate(parts), function)
    if len(parts) < 3:
        return value, error
    return value, np.fmax(error, jackknife(np.array([part.mean(axis=0) for part in parts]), function)[1])


def statistical_inefficiency(series: np.ndarray) -> float:
    """How many frames of a series (n_frames,) are worth one independent sample: 1 + 2 sum of C(t) (1 - t/n)
    up to the first t at which the autocorrelation C is not positive (Chodera et al., J. Chem. Theory Comput.
    3, 26, 2007)."""
    n = len(series)
    deviation = series - series.mean()
    power = np.abs(np.fft.rfft(deviation, 2 * n)) ** 2
    products = np.fft.irfft(power)[:n] / np.arange(n, 0, -1)
    if not products[0] > 1e-20 * (series**2).mean():
        return float(n)  # it stands still: one sample
    correlation = products / products[0]
    end = np.argmax(correlation <= 0.0) or n
    t = np.arange(1, end)
    return float(max(1.0, 1.0 + 2.0 * (correlation[1:end] * (1.0 - t / n)).sum()))


def n_independent(series: Sequence[np.ndarray]) -> float:
    """Independent samples in the series (n_frames,) of several replicas together."""
    return float(sum(len(one) / statistical_inefficiency(one) for one in series if len(one)))


def mean_with_error(series: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean over the series (n_frames,) of several replicas, and its standard error, in which correlated
    frames count as often as they are independent; from three replicas on the larger one of this and what the
    replicas' means say. Nan where there are fewer than two independent frames."""
    joined = np.concatenate(series)
    independent = n_independent(series)
    error = joined.std() / np.sqrt(independent - 1.0) if independent > 1.5 else np.nan
    if len(series) >= 3:
        means = np.array([one.mean() for one in series])
        error = np.fmax(error, means.std(ddof=1) / np.sqrt(len(means)))
    return float(joined.mean()), float(error)


def difference_with_error(series: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> tuple[float, float]:
    """Mean of ``others`` less that of ``series``, replica by replica, and its standard error.

    The k-th replicas of both are of the same conditions, in which replicas may differ: by how much their
    means do is no error. From three replicas on, the error is at least what their differences say.
    """
    differences = np.array([other.mean() - one.mean() for one, other in zip(series, others)])
    within = [mean_with_error([one])[1] for one in (*series, *others)]
    error = combined(*within) / len(differences)
    if len(differences) >= 3:
        error = np.fmax(error, differences.std(ddof=1) / np.sqrt(len(differences)))
    return float(differences.mean()), float(error)


def combined(*errors: float) -> float:
    """Error of a sum or a difference of independent figures."""
    return float(np.sqrt(np.sum(np.square(errors))))


def grouped_error(values: np.ndarray, groups: Sequence) -> float:
    """Standard error of the mean of ``values`` (n,), those of one group being correlated; nan for one group.

    The variance of a ratio of sums over independent groups (Cochran, Sampling Techniques, 1977, sec. 9A.1).
    """
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    n_groups = int(group.max()) + 1
    if n_groups < 2:
        return float("nan")
    residuals = np.bincount(group, weights=values - values.mean())
    return float(np.sqrt(n_groups / (n_groups - 1) * (residuals**2).sum()) / len(values))


def slope_with_error(times: np.ndarray, series: Sequence[np.ndarray]) -> tuple[float, float]:
    """Common slope of series (n_frames,) of replicas at ``times`` (n_frames,), and its standard error.

    Each replica has an intercept of its own. What is left over is correlated, and counts as often as it is
    independent; from three replicas on the error is at least what the replicas' own slopes say.
    """
    x = times - times.mean()
    spread = len(series) * (x**2).sum()
    if not spread > 0.0:
        return float("nan"), float("nan")
    slopes = np.array([(x * (one - one.mean())).sum() for one in series]) * len(series) / spread
    slope = float(slopes.mean())
    rest = [one - one.mean() - slope * x for one in series]
    free = n_independent(rest) - len(series) - 1.0
    error = np.concatenate(rest).std() / np.sqrt(free * (x**2).mean()) if free > 0.5 else np.nan
    if len(series) >= 3:
        error = np.fmax(error, slopes.std(ddof=1) / np.sqrt(len(series)))
    return slope, float(error)
