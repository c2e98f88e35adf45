"""The documentation builds without a warning, loads nothing from elsewhere, and says what the code says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
SOURCE = REPOSITORY / "src"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The built site; a dead link or anchor, a page outside of the nav, or a docstring that is wrong ends the build."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    # as on a machine without a network: whatever tries to connect fails
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_the_site_loads_nothing_from_elsewhere(site):
    loading = re.compile(
        r"<(?:script|img|iframe|source|video)[^>]*\ssrc=\"(?:https?:)?//[^\"]*"
        r"|<link(?![^>]*rel=\"canonical\")[^>]*\shref=\"(?:https?:)?//[^\"]*"
        r"|@import[^;]*//[^;]*|url\((?:['\"]?https?:)?//[^)]*"
    )
    files = (*site.rglob("*.html"), *site.rglob("*.css"))
    assert not [(path.name, match[0]) for path in files for match in loading.finditer(path.read_text())]


def test_the_site_shows_equations_without_sphinx_markup(site):
    text = "".join(path.read_text() for path in site.rglob("*.html"))
    equations = re.findall(r"<math.*?</math>", text, flags=re.DOTALL)
    assert len(equations) > 10
    assert not [equation for equation in equations if "\\" in equation]  # a command that was not understood
    assert not re.search(r":(?:class|func|meth|mod|attr|data|exc):|\.\. math::", text)


def test_the_reference_shows_what_users_name(site):
    import anomalib_mixedteacher
    import mixedteacher_edge
    from anomalib_mixedteacher import errors

    shown = "".join(path.read_text() for path in site.glob("api/*.html"))
    names = [f"anomalib_mixedteacher.{name}" for name in anomalib_mixedteacher.__all__ if not name.startswith("_")]
    raised = [value for value in vars(errors).values() if isinstance(value, type)]
    names += [f"{value.__module__}.{value.__name__}" for value in raised]
    for name in [*names, *(f"mixedteacher_edge.{name}" for name in mixedteacher_edge.__all__)]:
        assert f'id="{name}"' in shown, name


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", re.sub(r"\[([^]]*)\]\([^)]*\)|`", r"\1", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


PAGES = [path for folder in (DOCS, SOURCE, REPOSITORY / "teachers") for path in sorted(folder.rglob("*.md"))]
PAGES += sorted(REPOSITORY.glob("*.md"))


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


def test_the_teachers_made_for_an_offline_machine_are_taken(tmp_path, monkeypatch):
    """The block of docs/teachers.md, its download left out, and what it writes as teacher weights."""
    import timm

    from anomalib_mixedteacher.components import Teacher
    from anomalib_mixedteacher.components.weights import IMAGENET_TAGS

    create, asked = timm.create_model, {}

    def without_download(name, pretrained):
        asked[name] = pretrained
        return create(name.partition(".")[0])

    (block,) = re.findall(r"^```python\n(from.*?)^```", (DOCS / "teachers.md").read_text(), re.DOTALL | re.MULTILINE)
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setattr(timm, "create_model", without_download)
        exec(block, {})
    layers = {"resnet18": "layer2", "efficientnet_b0": "blocks.6", "vgg16": "features.30"}
    assert asked == {IMAGENET_TAGS[name]: True for name in layers}
    for backbone, layer in layers.items():
        Teacher(backbone, [layer]).load(str(tmp_path / "teachers"))  # raises where a weight is missing or not finite


@pytest.mark.parametrize(("name", "side"), [("MixedTeacher", 256), ("Msfd", 256), ("Mkd", 128)])
def test_the_shapes_of_the_methods_page_are_those_of_the_networks(name, side):
    import torch

    from anomalib_mixedteacher import plugin

    text = (DOCS / "method.md").read_text()
    (section,) = re.findall(rf"^## (?i:{name})\n(.*?)^## ", text, re.DOTALL | re.MULTILINE)
    rows = re.findall(r"^\|[^|]+\| (?:`layer|`blocks|pool)[^|]+\| (\d+) \| (\d+) \| (\d+) \|", section, re.MULTILINE)
    with torch.no_grad():
        maps = plugin.public(name)().model.student_features(torch.zeros(2, 3, side, side))
    assert [(int(c), int(s), int(s)) for c, _, s in rows] == [tuple(features.shape[1:]) for features in maps]
    assert [int(stride) for _, stride, _ in rows] == [side // features.shape[-1] for features in maps]
