"""The messages that docs/troubleshooting.md explains are those that the package prints."""

import ast
import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def test_quoted_messages_are_in_the_source():
    trees = [ast.parse(path.read_text()) for path in (REPOSITORY / "src").rglob("*.py")]
    strings = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    page = (REPOSITORY / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^> (.+)$", page, flags=re.MULTILINE)
    assert len(quoted) > 5
    assert not [text for text in quoted if not any(text in part for part in strings if isinstance(part, str))]
