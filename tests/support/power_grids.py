"""Nodal admittance matrices of real power grids, made by pandapower in a process of its own.

Its import takes seconds, brings pandas, and warns of things that are not ours.
"""

import subprocess
import sys
from pathlib import Path

from scipy.sparse import csr_array, load_npz, save_npz

CASES = ("case14", "case118", "case300", "case1354pegase", "case2869pegase")


def made(folder: Path) -> dict[str, csr_array]:
    """Run this file, and read what it wrote."""
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return {name: csr_array(load_npz(folder / f"{name}.npz")) for name in CASES}


def _write(folder: Path) -> None:
    import pandapower
    import pandapower.networks

    for name in CASES:
        net = getattr(pandapower.networks, name)()
        pandapower.runpp(net, numba=False)
        a = csr_array(net._ppc["internal"]["Ybus"])
        a.sum_duplicates()
        save_npz(folder / f"{name}.npz", a)


if __name__ == "__main__":
    _write(Path(sys.argv[1]))
