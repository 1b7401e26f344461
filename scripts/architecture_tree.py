"""Write the file list of ARCHITECTURE.md: one line a module, the first line of its docstring.

`--check` writes nothing and exits with 1 if the list is out of date.
"""

import argparse
import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN, END = "<!-- files: scripts/architecture_tree.py -->\n", "<!-- end of files -->\n"
PACKAGES = ("client/src/backsolve", "service/src/backsolve_service", "examples", "loadtests", "scripts")
GENERATED = ROOT / "client/src/backsolve/v1"


def tree() -> str:
    """The list as Markdown: a heading for each folder, a row for each file."""
    parts = []
    for package in PACKAGES:
        folders: dict[Path, list[str]] = {}
        for file in sorted((ROOT / package).rglob("*.py")):
            if file.parent != GENERATED and (line := _first_line(file)):
                folders.setdefault(file.parent, []).append(f"| `{file.name}` | {line} |")
        for folder, rows in sorted(folders.items()):
            parts.append(
                f"\n**`{folder.relative_to(ROOT)}/`**\n\n| file | what it holds |\n|---|---|\n" + "\n".join(rows)
            )
    return "\n".join(parts) + "\n\n"


def _first_line(file: Path) -> str:
    """First paragraph of the module's docstring, on one line; empty for a file without one."""
    text = ast.get_docstring(ast.parse(file.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split()).replace("|", "\\|")


def main() -> int:
    """Exit status: 1 if `--check` finds the list out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    page = PAGE.read_text()
    head, rest = page.split(BEGIN)
    _, tail = rest.split(END)
    fresh = head + BEGIN + tree() + END + tail
    if check and fresh != page:
        print("ARCHITECTURE.md: the list of files is out of date; run scripts/architecture_tree.py", file=sys.stderr)
        return 1
    if not check:
        PAGE.write_text(fresh)
    return 0


if __name__ == "__main__":
    sys.exit(main())
