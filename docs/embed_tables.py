"""Put a benchmark's tables into the pages that quote them: ``make tables``.

A page names the sections it quotes between two comments, and what lies between them is replaced::

    <!-- tables: runs/real/table.md | Mean -->
    <!-- end of tables -->

A name is the start of a heading; ``remarks`` are the lines below the last table; without names all of it is quoted. A
table that is not there leaves the page as it is.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

BLOCK = re.compile(r"<!-- tables: ([^|>]+?)((?: \| [^|>]+?)*) -->\n(.*?)<!-- end of tables -->", re.DOTALL)


def read_sections(markdown: str) -> dict[str, str]:
    """Split a benchmark's ``table.md`` into its tables by heading, and the remarks below them."""
    sections = {}
    for part in re.split(r"^### ", markdown, flags=re.MULTILINE)[1:]:
        heading, table, *remarks = part.strip().split("\n\n")
        sections[heading] = table
        if remarks:
            sections["remarks"] = "\n\n".join(remarks)
    return sections


def embed(page: str, root: Path) -> str:
    """Replace the quoted tables of a page.

    Args:
        page: Text of the page.
        root: Folder that the paths in the page start from.

    Returns:
        The text with the tables as they are in the files now.

    Raises:
        SystemExit: If a file has no such section.
    """

    def quote(block: re.Match[str]) -> str:
        path, names = root / block[1], [name.strip() for name in block[2].split("|") if name.strip()]
        if not path.is_file():
            print(f"{path} is not there: left as it is", file=sys.stderr)
            return block[0]
        sections = read_sections(path.read_text(encoding="utf-8"))
        quoted = "\n\n".join(_section(sections, name, path) for name in names or sections)
        return block[0].split("\n", 1)[0] + f"\n{quoted}\n<!-- end of tables -->"

    return BLOCK.sub(quote, page)


def _section(sections: dict[str, str], name: str, path: Path) -> str:
    heading = next((heading for heading in sections if heading.startswith(name)), None)
    if heading is None:
        raise SystemExit(f"{path} has no section {name!r}: it has {', '.join(sections)}.")
    return sections[heading] if heading == "remarks" else f"{heading}:\n\n{sections[heading]}"


def main(pages: Sequence[str]) -> None:
    """Replace the tables of the pages in place."""
    for path in map(Path, pages):
        path.write_text(embed(path.read_text(encoding="utf-8"), Path()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
