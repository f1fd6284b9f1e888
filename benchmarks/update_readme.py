"""Writes the README's tables from the committed result files.

    python benchmarks/update_readme.py

A test holds README.md against the files, so a table cannot be edited by hand.
"""

import re
from pathlib import Path

from quantkit.files import read_json, write_text
from quantkit.report import Report, report_rows

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- (\w+): (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def main() -> None:
    """Rewrite every block between `<!-- name: file -->` and `<!-- end -->`."""
    readme = ROOT / "README.md"
    write_text(readme, BLOCK.sub(_block, readme.read_text(encoding="utf-8")))


def _block(found: re.Match[str]) -> str:
    name, file = found.groups()
    lines: list[str] = (
        read_json(ROOT / file)["results"]["table"]
        if name == "cpu_int8"
        else report_rows(Report.load(ROOT / file))
    )
    return "\n".join([f"<!-- {name}: {file} -->", *lines, "<!-- end -->"])


if __name__ == "__main__":
    main()
