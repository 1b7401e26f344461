"""After a fork the child has an engine, locks and connections of its own."""

import multiprocessing
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from backsolve import Client
from support.systems import convection


def child_solve(client: Client, queue: "multiprocessing.Queue[float]") -> None:
    a = convection(6)
    x = client.solve(a, np.ones(36)).x
    queue.put(float(np.abs(a @ x - 1).max()))


@pytest.mark.same_host
@pytest.mark.awaited
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_solves_with_the_parents_client(client: Client) -> None:
    context = multiprocessing.get_context("fork")
    client.solve(convection(6), np.ones(36))
    queue: multiprocessing.Queue[float] = context.Queue()
    children = [context.Process(target=child_solve, args=(client, queue)) for _ in range(2)]
    for child in children:
        child.start()
    errors = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert max(errors) < 1e-12
    assert client.solve(convection(6), np.ones(36)).stats.factor_hit


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os._exit(0)", "pass"])
def test_the_process_ends_quietly_with_factors_held(ending: str) -> None:
    """SuperLU complains when its memory is freed by another thread than the one that took it."""
    script = textwrap.dedent(
        f"""
        import os, sys
        import numpy as np
        from scipy import sparse
        from backsolve import Client
        client = Client("embedded")
        a = sparse.csr_array(sparse.diags_array([-1.0, 3.0, -1.0], offsets=[-1, 0, 1], shape=(50, 50)))
        client.solve(a, np.ones(50))
        if os.fork() == 0:
            client.solve(a, np.ones(50))
            {ending}
        else:
            os.wait()
            {ending}
        """
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("BACKSOLVE_")}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert done.returncode == 0
    assert done.stderr == ""
