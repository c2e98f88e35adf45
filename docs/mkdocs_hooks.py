"""What the documentation's build adds to MkDocs: Sphinx's roles in docstrings as links, and equations.

Docstrings are written as anomalib's are, with Sphinx's roles and ``.. math::``; mkdocstrings reads Markdown. Equations
become MathML, which browsers draw themselves: with a script for them the site could not be read without internet.
"""

import re
from typing import Any

from griffe import Alias, Extension, GriffeLoader, Module, Object
from latex2mathml.converter import convert

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`(~?)([\w.]+)`")
_MATH = re.compile(r"^\.\. math::\s*(.+(?:\n[ ]+.+)*)", re.MULTILINE)


def on_config(config: Any) -> None:
    """Let a code block of the language ``math`` be an equation, as GitHub does; called by MkDocs."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": _equation})


class DocstringMarkup(Extension):
    """Turns Sphinx's markup in the docstrings of a package into Markdown."""

    def on_package(self, *, pkg: Module, loader: GriffeLoader, **kwargs: Any) -> None:
        """Rewrite every docstring of a package; called by Griffe.

        Args:
            pkg: The package.
            loader: Unused.
            kwargs: Unused.
        """
        del loader, kwargs
        _rewrite(pkg)


def _equation(source: str, *args: Any, **kwargs: Any) -> str:
    del args, kwargs
    return convert(source, display="block")


def _rewrite(item: Object | Alias) -> None:
    if isinstance(item, Alias):
        return
    if item.docstring is not None:
        text = _MATH.sub(lambda match: f"```math\n{match[1]}\n```\n", item.docstring.value)
        item.docstring.value = _ROLE.sub(lambda match: _link(item, short=bool(match[1]), name=match[2]), text)
    for member in item.members.values():
        _rewrite(member)


def _link(item: Object, short: bool, name: str) -> str:
    """Link a name, or leave it as code where no page shows what it names."""
    path = _resolve(item, name)
    text = f"<code>{name.rpartition('.')[2] if short else name.lstrip('.')}</code>"
    return f'<autoref identifier="{path}" optional>{text}</autoref>'


def _resolve(item: Object, name: str) -> str:
    """Complete a name as Python would where the docstring stands."""
    if name.startswith("."):
        module = item.module
        package = module.path if module.is_init_module else module.path.rpartition(".")[0]
        return f"{package}{name}"
    if name.startswith(f"{item.package.name}."):
        return name
    first, dot, rest = name.partition(".")
    try:
        return f"{item.resolve(first)}{dot}{rest}"
    except Exception:  # one of Griffe's errors, which differ between versions: a link less
        return name
