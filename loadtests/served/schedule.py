"""When the steps of an open loop are due: arrivals that do not wait for the server."""

import numpy as np
from numpy.typing import NDArray


def poisson(rate: float, seconds: float, seed: int, most: int) -> NDArray[np.float64]:
    """Arrivals of a Poisson process, in seconds after the start, ascending.

    Independent callers who know nothing of each other arrive like this: the gaps are exponential,
    so that bursts come by themselves.

    Args:
        rate: mean arrivals a second, above 0.
        seconds: none arrives later.
        seed: the same seed gives the same arrivals.
        most: no more than this many.

    Raises:
        ValueError: the rate or the time is not above 0.
    """
    if not (rate > 0 and seconds > 0):
        raise ValueError("an open loop needs a rate and a time above 0")
    # With the mean and eight deviations drawn, the arrivals practically always fill the time; else they are drawn on.
    rng = np.random.default_rng(seed)
    expected = rate * seconds
    due = np.cumsum(rng.exponential(1 / rate, int(expected + 8 * expected**0.5 + 8)))
    while due[-1] < seconds and due.size < most:
        due = np.concatenate([due, due[-1] + np.cumsum(rng.exponential(1 / rate, 64))])
    return due[due < seconds][:most]
