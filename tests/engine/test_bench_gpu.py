"""The benchmark of CUDA devices: that it runs, here on torch's CPU, and that it claims nothing without a device."""

import math
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from backsolve_service.engine.direct.cudss import handles
from loadtests.gpu import __main__ as bench
from loadtests.gpu import figures
from loadtests.gpu.clock import copy_bandwidth
from support.cudss_model import Model

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_without_a_device_it_says_so_and_ends_well(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-m", "loadtests.gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout.partition(":")[0]) == (0, "skipped")
    assert not list(tmp_path.iterdir())


def test_every_operation_runs_and_has_its_line(monkeypatch):
    model = Model()
    monkeypatch.setattr(handles, "load", lambda: model.library)
    monkeypatch.setattr(handles, "_own", threading.local())
    monkeypatch.setattr(figures, "installed", lambda: True)
    monkeypatch.setattr(bench, "SIDES", (6,))
    monkeypatch.setattr(bench, "ORDERS", (16,))
    monkeypatch.setattr(bench, "CUDSS_SIDES", (6,))
    measured = list(bench.every("cpu", rounds=2))
    assert len(measured) == 6 + 7 + 3 + 3 + 4
    assert all(math.isfinite(figure.seconds) for figure in measured)
    product = measured[0]
    # 36 rows, 156 entries: numbers, places, and a vector in and out.
    assert product.nbytes == 156 * 8 + 156 * 4 + 37 * 4 + 2 * 36 * 8
    assert bench.line(product, 1e9).endswith("% of a copy")
    assert "GFLOP/s" in measured[13].operation
    assert copy_bandwidth("cpu", rounds=1) > 0
