"""A machine whose libraries answer wrongly is found before a caller is."""

from dataclasses import replace

import pytest

from backsolve.errors import SingularMatrixError
from backsolve_service import selftest
from backsolve_service.dataplane.plane import DataPlane
from backsolve_service.engine.registry import ROWS, methods


class Faulty:
    """A data plane whose answers to some calls are changed."""

    def __init__(self, plane, change):
        self.plane, self.change = plane, change

    def put(self, call, context):
        return self.plane.put(call, context)

    def solve(self, call, context):
        return self.change(call, lambda call: self.plane.solve(call, context))


@pytest.fixture
def plane():
    made = DataPlane()
    yield made
    made.close()


def test_every_method_is_tested_and_passes(plane):
    assert selftest.run(plane) == methods()
    # Each layout of each method is factorized once: N, T and H share a factor.
    assert plane.stats()["factorizations"] == sum(len(ROWS[name].layouts) for name in methods())


SWAPS = [("T", "N"), ("H", "T")]


@pytest.mark.parametrize(
    ("method", "asked", "given"),
    # A diagonal matrix is its transpose; least squares has one operator.
    [
        (name, *swap)
        for name in methods()
        if not ROWS[name].least_squares
        for swap in SWAPS[ROWS[name].needs == "diagonal" :]
    ],
)
def test_a_wrong_operator_is_found(plane, method, asked, given):
    def swap(call, solve):
        if (call.options.method, call.options.trans) == (method, asked):
            call = replace(call, options=replace(call.options, trans=given))
        return solve(call)

    with pytest.raises(selftest.SelfTestError, match=f"method '{method}' answers wrongly for trans='{asked}'"):
        selftest.run(Faulty(plane, swap))


def test_an_answer_of_nan_is_found(plane):
    def spoil(call, solve):
        reply = solve(call)
        return replace(reply, x=reply.x * float("nan"))

    with pytest.raises(selftest.SelfTestError, match="answers wrongly"):
        selftest.run(Faulty(plane, spoil))


def test_an_error_is_told_with_its_method(plane):
    def fail(call, solve):
        if call.options.method == "superlu":
            raise SingularMatrixError("no")
        return solve(call)

    with pytest.raises(selftest.SelfTestError, match=r"method 'superlu' with trans='N' failed: no"):
        selftest.run(Faulty(plane, fail))
