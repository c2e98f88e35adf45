"""The documentation builds without a warning, loads nothing from elsewhere, and says what the code says."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
SOURCE = REPOSITORY / "src"

needs_mkdocs = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings", "griffe", "latex2mathml")),
    reason="the docs extra is not installed: pip install -e '.[docs]'",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a warning, a dead link or anchor, or a page outside of the nav would end the build."""
    folder = tmp_path_factory.mktemp("site")
    # as on a machine without a network: whatever tries to connect fails
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def pages_of(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, (list, dict)):
        for part in nav.values() if isinstance(nav, dict) else nav:
            yield from pages_of(part)


@needs_mkdocs
class TestSite:
    def test_every_page_is_there(self, site):
        pages = {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")}
        assert pages <= {path.relative_to(site) for path in site.rglob("*.html")}

    def test_nothing_is_loaded_from_elsewhere(self, site):
        loading = re.compile(
            r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"(?:https?:)?//[^\"]*"
            r"|<link(?![^>]*rel=\"canonical\")[^>]*\shref=\"(?:https?:)?//[^\"]*"
            r"|@import[^;]*//[^;]*|url\((?:['\"]?https?:)?//[^)]*"
        )
        found = [
            (path.name, match[0])
            for path in (*site.rglob("*.html"), *site.rglob("*.css"))
            for match in loading.finditer(path.read_text())
        ]
        assert not found

    def test_equations_were_understood(self, site):
        text = "".join(path.read_text() for path in site.rglob("*.html"))
        equations = re.findall(r"<math.*?</math>", text, flags=re.DOTALL)
        assert len(equations) > 10
        assert not [equation for equation in equations if "\\" in equation]  # a command that was not

    def test_docstrings_lose_sphinx_markup(self, site):
        text = "".join(path.read_text() for path in site.glob("api/*.html"))
        assert not re.search(r":(?:class|func|meth|mod|attr|data|exc):|\.\. math::", text)

    def test_the_reference_shows_what_users_name(self, site):
        import anomalib_mixedteacher
        from anomalib_mixedteacher import edge, errors

        shown = "".join(path.read_text() for path in site.glob("api/*.html"))
        names = [name for name in anomalib_mixedteacher.__all__ if not name.startswith("_")]
        raised = [f"errors.{name}" for name, value in vars(errors).items() if isinstance(value, type)]
        for name in [*names, *(f"edge.{name}" for name in edge.__all__), *raised]:
            assert f'id="anomalib_mixedteacher.{name}"' in shown, name


def test_every_page_is_in_the_nav_once():
    settings = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())
    listed = list(pages_of(settings["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = [
        re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", title) for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


PAGES = [
    *sorted(DOCS.rglob("*.md")),
    *sorted((SOURCE / "anomalib_mixedteacher").rglob("*.md")),
    *sorted(REPOSITORY.glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_links_resolve_where_they_are_read_as_files(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(REPOSITORY), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


@needs_mkdocs
def test_docstrings_and_signatures_agree(caplog):
    import griffe

    def warnings_of(package: griffe.Module) -> list[str]:
        caplog.clear()
        pending: list = [package]
        while pending:
            item = pending.pop()
            if item.is_alias:
                continue
            if item.docstring is not None:
                item.docstring.parse("google")
            pending.extend(item.members.values())
        return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]

    code = 'def f(a: int) -> None:\n    """Do.\n\n    Args:\n        b: Wrong.\n    """\n'
    with griffe.temporary_visited_module(code) as wrong:
        assert any("'b'" in message for message in warnings_of(wrong))  # or what follows would find nothing
    assert not warnings_of(griffe.load("anomalib_mixedteacher", search_paths=[SOURCE], try_relative_path=False))


def test_the_teachers_made_for_an_offline_machine_are_taken(tmp_path, monkeypatch):
    """The block of docs/teachers.md, its download left out, and what it writes as teacher weights."""
    import timm
    import torch

    from anomalib_mixedteacher.components import Teacher
    from anomalib_mixedteacher.components.weights import IMAGENET_TAGS

    create, asked = timm.create_model, {}

    def without_download(name, pretrained):
        asked[name] = pretrained
        return create(name.partition(".")[0])

    (block,) = re.findall(
        r"^```python\n(from pathlib.*?)^```", (DOCS / "teachers.md").read_text(), re.DOTALL | re.MULTILINE
    )
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(timm, "create_model", without_download)
        exec(block, {})
    assert asked == {IMAGENET_TAGS[name]: True for name in ("resnet18", "efficientnet_b0", "vgg16")}
    for backbone, layers in (
        ("resnet18", ("layer1", "layer2")),
        ("efficientnet_b0", ("blocks.4", "blocks.6")),
        ("vgg16", ("features.9", "features.30")),
    ):
        teacher = Teacher(backbone, layers)
        teacher.load(str(tmp_path / "teachers"))
        assert not any(torch.isnan(value).any() for value in teacher.state_dict().values())


@pytest.mark.parametrize(
    ("heading", "name", "side"), [("MixedTeacher", "MixedTeacher", 256), ("MSFD", "Msfd", 256), ("MKD", "Mkd", 128)]
)
def test_the_shapes_of_the_methods_page_are_those_of_the_networks(heading, name, side):
    import torch

    from anomalib_mixedteacher import plugin

    (section,) = re.findall(rf"^## {heading}\n(.*?)^## ", (DOCS / "method.md").read_text(), re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\|[^|]+\| (?:`?layer|stage|pool)[^|]+\| (\d+) \| (\d+) \| (\d+) \|", section, re.MULTILINE)
    model = plugin.public(name)(teacher_weights="random").model
    model.load_teachers("random")
    with torch.no_grad():
        features = model.teacher_features(torch.zeros(1, 3, side, side))
    shapes = [tuple(level.shape[1:]) for maps in features.values() for level in maps]
    assert [(int(c), int(s), int(s)) for c, _, s in rows] == shapes
    assert [int(stride) for _, stride, _ in rows] == [side // shape[-1] for shape in shapes]
