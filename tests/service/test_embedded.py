"""The engine is a guest in its caller's process: it changes nothing there, and gives its memory back."""

import json
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from backsolve_service.embedded import guest_config

GIB = 2**30


def script(code: str) -> Any:
    """What a fresh interpreter prints last, as JSON; warnings are errors there."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BACKSOLVE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
        env=inherited | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout.splitlines()[-1])


PRELUDE = """
import json, sys
import numpy as np
from scipy.sparse import diags_array
from backsolve import Client

SPARSE = diags_array([-1.0, 3.0, -1.0], offsets=[-1, 0, 1], shape=(60, 60)).tocsr()
DENSE = np.diag(np.arange(1.0, 9.0)) + 0.1 * np.triu(np.ones((8, 8)))
"""

# -- the budget ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "budget"), [(5 * GIB, GIB // 2), (20 * GIB, 2 * GIB), (512 * GIB, 2 * GIB)], ids=["10%", "equal", "2GiB"]
)
def test_the_cache_takes_a_tenth_of_the_memory_and_never_more_than_2_gib(
    monkeypatch: pytest.MonkeyPatch, memory: int, budget: int
):
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": memory // 4096}.__getitem__)
    assert guest_config().cache_bytes == budget


def test_the_engine_of_a_client_has_that_budget():
    code = """
    from backsolve_service.embedded import EmbeddedTransport, guest_config
    transport = EmbeddedTransport()
    print(json.dumps([transport.plane.config.cache_bytes, guest_config().cache_bytes]))
    transport.close()
    """
    used, said = script(code)
    assert used == said <= 2 * GIB


# -- nothing of the host's is changed ------------------------------------------------------

WATCH = """
import logging, os, signal, threading, warnings
from prometheus_client import REGISTRY

def look():
    root, ours = logging.getLogger(), logging.getLogger("backsolve_service")
    return {
        "signals": [str(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "logging": [root.level, list(map(repr, root.handlers)), root.disabled, root.manager.disable],
        "logger": [ours.level, list(map(repr, ours.handlers)), ours.propagate],
        "prometheus": sorted(family.name for family in REGISTRY.collect()),
        "environment": dict(os.environ),
        "hooks": list(map(repr, (sys.excepthook, threading.excepthook, warnings.showwarning))),
        "rounding": repr(np.geterr()),
    }

before = look()
with Client("embedded") as client:
    for A in (SPARSE, DENSE):
        x = client.solve(A, np.ones(A.shape[0])).x
        client.vjp(A, x, np.ones(A.shape[0]))
    during = look()
after = look()
print(json.dumps([before, during, after]))
"""


@pytest.fixture(scope="module")
def watched() -> list[dict[str, Any]]:
    """The host's state before the first client, while the engine runs, and after the last client."""
    return script(WATCH)


@pytest.mark.parametrize("what", ["signals", "logging", "logger", "prometheus", "environment", "hooks", "rounding"])
def test_the_host_keeps_its(watched: list[dict[str, Any]], what: str):
    before, during, after = (state[what] for state in watched)
    assert before
    assert during == before
    assert after == before


def test_a_sparse_solve_and_its_gradient_load_no_torch():
    code = """
    with Client("embedded") as client:
        x = client.solve(SPARSE, np.ones(60)).x
        client.vjp(SPARSE, x, np.ones(60))
        sparse = "torch" in sys.modules
        client.solve(DENSE, np.ones(8))
    print(json.dumps([sparse, "torch" in sys.modules]))
    """
    assert script(code) == [False, True]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_threads_of_torch_stay_as_they_are(threads: int):
    code = f"""
    import torch
    torch.set_num_threads({threads})
    with Client("embedded") as client:
        client.solve(DENSE, np.ones(8))
        client.solve(SPARSE, np.ones(60))
        during = torch.get_num_threads()
    print(json.dumps([during, torch.get_num_threads()]))
    """
    assert script(code) == [threads, threads]


# -- its memory ----------------------------------------------------------------------------


def test_the_last_client_to_close_frees_every_factor():
    code = """
    import gc, threading, weakref
    from backsolve_service.engine.base import Factor

    def alive():
        gc.collect()
        return [weakref.ref(thing) for thing in gc.get_objects() if issubclass(type(thing), Factor)]

    first, second = Client("embedded"), Client("embedded")
    idle = threading.active_count()
    for A in (SPARSE, DENSE):
        first.solve(A, np.ones(A.shape[0]))
    held = alive()
    first.close()
    hit = second.solve(SPARSE, np.ones(60)).stats.factor_hit
    size = second.stats()["cache_bytes"]
    second.close()
    gc.collect()
    left = sum(reference() is not None for reference in held)
    with Client("embedded") as third:
        again = third.solve(SPARSE, np.ones(60)).stats.factor_hit
    print(json.dumps([len(held), hit, size > SPARSE.data.nbytes, left, threading.active_count() - idle, again]))
    """
    factors, hit, counted, left, threads, again = script(code)
    assert factors >= 2
    assert hit is True
    assert counted is True
    assert left == 0
    assert threads == 0
    assert again is False


# -- its metrics ---------------------------------------------------------------------------


def samples(page: str, name: str) -> dict[tuple[str, ...], float]:
    """Values of one sample by its labels' values, in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == f"backsolve_{name}"
    }


@pytest.fixture(scope="module")
def pages() -> list[str]:
    """The page before any client, after three solves and a gradient, and of the next engine."""
    code = """
    from backsolve.errors import SingularMatrixError
    from backsolve_service.embedded import metrics_text

    def page():
        text, media_type = metrics_text()
        assert media_type.startswith("text/plain"), media_type
        return text.decode()

    seen = [page()]
    with Client("embedded") as client, Client("embedded") as other:
        x = client.solve(SPARSE, np.ones(60)).x
        client.vjp(SPARSE, x, np.ones(60))
        other.solve(SPARSE, np.ones(60))
        try:
            client.solve(np.zeros((2, 2)), np.ones(2), method="lu")
        except SingularMatrixError:
            pass
        seen.append(page())
    with Client("embedded") as client:
        client.solve(SPARSE, np.ones(60))
        seen.append(page())
    print(json.dumps(seen))
    """
    return script(code)


def test_calls_are_counted_by_their_end(pages: list[str]):
    counted = samples(pages[1], "requests_total")  # code, op, transport
    assert {key[2] for key in counted} == {"embedded"}
    assert counted["OK", "solve", "embedded"] == 2
    assert counted["OK", "vjp", "embedded"] == 1
    assert counted["SINGULAR_MATRIX", "solve", "embedded"] == 1


def test_work_is_counted(pages: list[str]):
    assert samples(pages[1], "factorizations_total") == {("banded",): 1.0}
    assert samples(pages[1], "cache_bytes")["factor", "host"] > 0


def test_no_engine_has_counted_nothing(pages: list[str]):
    assert samples(pages[0], "requests_total") == {}
    assert samples(pages[0], "build_info")


def test_the_next_engine_counts_anew(pages: list[str]):
    assert samples(pages[2], "requests_total")["OK", "solve", "embedded"] == 1
