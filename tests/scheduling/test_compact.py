"""The bytes of a worker's messages: what goes in comes out, compactly or pickled."""

import pickle
from dataclasses import fields, replace

import numpy as np
import pytest

from backsolve.types import DTYPES, TRANS, Status
from backsolve_service.engine.answer import Answer
from backsolve_service.engine.base import Controls
from backsolve_service.scheduling.compact import decode, encode
from backsolve_service.scheduling.messages import Answered, Release, Solve

ANSWER = Answer(
    x=np.empty(0),
    statuses=((Status.OK,) * 3,),
    iterations=(7,),
    refinements=2,
    relative_residual=np.array([[1e-17, 0.0, np.inf]]),
    backward_error=np.array([[3e-300, np.nan, 0.5]]),
    condition=None,
)


def same(one, other):
    for field in fields(one):
        mine, its = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            np.testing.assert_array_equal(mine, its)
            assert mine.dtype == its.dtype
        else:
            assert mine == its, field.name


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plain_solve(dtype, trans):
    message, layout = Solve(2**40 + 3, trans, Controls()), [(0, dtype.str, (100, 4))]
    body = encode(message, layout)
    assert decode(bytearray(body)) == (message, layout)
    assert len(body) < len(pickle.dumps((message, layout))) / 3


@pytest.mark.parametrize(
    "controls",
    [Controls(rtol=1e-3), Controls(refine=0), Controls(condition=True), Controls(maxiter=5), Controls(cotangent=True)],
)
def test_a_solve_with_options_keeps_them(controls):
    message, layout = Solve(3, "T", controls), [(0, "<f8", (10, 1))]
    got, places = decode(bytearray(encode(message, layout)))
    assert (got, places) == (message, layout)
    assert got.controls.condition == controls.condition


@pytest.mark.parametrize("layout", [[(0, "<f8", (2, 10, 1))], [(0, "<f8", (9, 1)), (128, "<f8", (9, 1))], []])
def test_other_layouts(layout):
    message = Solve(3, "H", Controls())
    assert decode(bytearray(encode(message, layout))) == (message, layout)


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        replace(ANSWER, condition=4e17),
        replace(ANSWER, condition=0.0, statuses=((Status.INCONSISTENT,) * 3,)),
        replace(ANSWER, inverse_norm=2.5),
        replace(ANSWER, note="of one solve"),
        replace(ANSWER, statuses=((Status.OK, Status.NONFINITE_INPUT, Status.OK),)),
        replace(ANSWER, iterations=(2**33,)),
    ],
)
def test_an_answer(answer):
    layout = [(0, "<c16", (50, 3))]
    got, places = decode(bytearray(encode(Answered(answer), layout)))
    assert places == layout
    same(got.answer, answer)


def test_an_answer_of_a_batch():
    answer = replace(
        ANSWER,
        statuses=((Status.OK,), (Status.SINGULAR_NUMERIC,)),
        iterations=(0, 0),
        relative_residual=np.zeros((2, 1)),
        backward_error=np.ones((2, 1)),
    )
    layout = [(0, "<f8", (2, 50, 1))]
    got, places = decode(bytearray(encode(Answered(answer), layout)))
    assert places == layout
    same(got.answer, answer)


def test_anything_else():
    assert decode(bytearray(encode(Release((4, 5), arena=True), []))) == (Release((4, 5), arena=True), [])
