"""The messages that docs/troubleshooting.md explains are those that the package prints."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = REPOSITORY / "docs" / "troubleshooting.md"
SOURCE = REPOSITORY / "src"

_WILD = "\0"
_PERCENT = re.compile(r"%(?:\.\d+)?[sdgrf]")
_LEAST_FIXED = 12  # characters of a message that no other has by chance
_SHORT = 30


def templates(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, what is filled in at run time replaced by a mark."""
    filled = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    pieces = {id(part) for node in filled for part in node.values}
    for node in filled:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else _WILD for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces:
            yield _PERCENT.sub(_WILD, node.value).replace("%%", "%")


def patterns() -> list[re.Pattern[str]]:
    found = {
        template
        for path in SOURCE.rglob("*.py")
        for template in templates(ast.parse(path.read_text()))
        if len(template.replace(_WILD, "")) >= _LEAST_FIXED
    }
    fixed = [list(map(re.escape, template.split(_WILD))) for template in found]
    return [
        re.compile(".+?".join(parts)) if parts[-1] else re.compile(".+?".join(parts[:-1]) + "(?P<tail>.+)")
        for parts in fixed
    ]


def is_printed(message: str, known: list[re.Pattern[str]]) -> bool:
    """Whether a message is one of the source's strings, or some of them one behind the other.

    What is filled in at the end of one has to be in the source as well, unless it is short.
    """
    if message in {"", "."}:
        return True
    for pattern in known:
        if match := pattern.fullmatch(message):
            tail = match.groupdict().get("tail", "")
            if len(tail) < _SHORT or is_printed(tail, known):
                return True
    starts = (pattern.match(message) for pattern in known if "tail" not in pattern.groupindex)
    return any(is_printed(message[end:], known) for end in {match.end() for match in starts if match})


def quoted() -> list[str]:
    """The messages of this package that the page explains; those of others stand in code blocks."""
    return re.findall(r"^> `(.+)`$", PAGE.read_text(), flags=re.MULTILINE)


def test_quoted_messages_are_in_the_source():
    known = patterns()
    messages = quoted()
    assert len(messages) > 40
    assert len(messages) == PAGE.read_text().count("\n> ")
    assert not [message for message in messages if not is_printed(message, known)]


def test_a_message_that_nobody_prints_would_be_found():
    known = patterns()
    message = "The weights folder teachers has no vgg16.safetensors or vgg16.pth; put one there."
    assert is_printed(message, known)
    reason = "Training without the cache of teachers' features: the moon is in the seventh house, wait until it is not."
    for wrong in (
        message.replace("put one", "place one"),
        message + " Or not.",
        "anything",
        "The weights folder",
        reason,
    ):
        assert not is_printed(wrong, known), wrong
