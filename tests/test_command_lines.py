"""Options that take several values may also be given several times: none of the values is forgotten."""

import argparse
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("loadtests", "scripts", "examples")
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in FOLDERS
    for path in (ROOT / folder).rglob("*.py")
    if "nargs=" in path.read_text()
)


class Parsing(Exception):  # noqa: N818  (it says how far a program has come, not that something went wrong)
    """Carries the parser of a program that is about to read its arguments."""


def parser_of(module: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """What the program reads its arguments with; it gets no further."""

    def stop(self, *given, **more):
        raise Parsing(self)

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    program = importlib.import_module(module)
    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(Parsing) as stopped:
            program.main()
    return stopped.value.args[0]


def test_there_are_such_options():
    assert {"loadtests.limits.__main__", "loadtests.served.__main__", "scripts.test_matrix"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_values_given_apart_are_all_kept(module: str, monkeypatch: pytest.MonkeyPatch):
    parser = parser_of(module, monkeypatch)
    several = [action for action in parser._actions if action.nargs == "+"]
    assert several
    for action in several:
        option, first, *_, last = [*action.option_strings, *(action.choices or ("17", "29"))]
        together = parser.parse_args([option, first, last])
        assert parser.parse_args([option, first, option, last]) == together
        assert [str(value) for value in getattr(together, action.dest)] == [first, last]
