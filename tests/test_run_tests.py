"""`make test` runs every test there is, and fails if one does."""

from pathlib import Path

import pytest

from scripts.run_tests import LONG, main, parts

TESTS = Path(__file__).parent


def test_no_file_of_tests_is_left_out():
    covered = {
        file
        for _, paths in parts(TESTS)
        for path in map(Path, paths)
        for file in ([path] if path.is_file() else path.rglob("test_*.py"))
    }
    assert covered == set(TESTS.rglob("test_*.py"))


def test_what_is_started_first_exists():
    assert set(LONG) <= {name for name, _ in parts(TESTS)}


@pytest.fixture
def small(tmp_path):
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_it.py").write_text("def test_it():\n    assert sorted([2, 1]) == [1, 2]\n")
    return tmp_path


def test_each_case_has_examples_of_its_own(small):
    """Which Hypothesis gives them by its plugin alone."""
    (small / "first" / "test_it.py").write_text(
        "import pytest\nfrom hypothesis import given, settings, strategies as st\nSEEN = {1: [], 2: []}\n"
        "@pytest.mark.parametrize('case', SEEN)\n@settings(derandomize=True)\n@given(x=st.floats())\n"
        "def test_it(case, x):\n    SEEN[case].append(repr(x))\n"
        "def test_they_differ():\n    assert SEEN[1] != SEEN[2]\n"
    )
    assert main([], small) == 0


def test_all_parts_pass(small, capfd):
    assert main([], small) == 0
    said = capfd.readouterr().out
    assert said.count("1 passed") == 2
    assert "FAILED" not in said


@pytest.mark.parametrize("place", ["second/test_it.py", "test_beside.py"])
def test_one_failure_is_one_of_the_whole(small, capfd, place):
    (small / place).write_text("def test_it():\n    assert False, 'so it is'\n")
    assert main([], small) == 1
    ending = capfd.readouterr().out.rsplit("= FAILURES =", 1)[1]
    assert "so it is" in ending
    assert "FAILED (1)" in ending


def test_a_part_that_cannot_be_collected_fails(small):
    (small / "first" / "test_it.py").write_text("import a_module_that_is_not_there\n")
    assert main([], small) != 0
