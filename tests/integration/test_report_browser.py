"""The report in a real browser: no error, no network, filters, sorting, a phone's width, paper, and no script."""

import base64
import json

import pytest

from anomalib_mixedteacher.report.command import main

from ..unit.report.fake_run import make_run

pytest.importorskip("selenium", reason="selenium is not installed: install the dev extra")
from ..unit.report.browser import CHROMIUM, DESKTOP, DRIVER, PHONE, open_page

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="there is no chromium with its chromedriver: apt-get install chromium chromium-driver",
)
ROWS = "return [...document.querySelectorAll('.row')].filter((row) => row.checkVisibility()).map((row) => row.dataset)"
MODELS = "return [...document.querySelector('.sortable').tBodies[0].rows].map((row) => row.cells[0].textContent)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run"), fail=[("Stfpm", "MagneticTile", 0), ("Stfpm", "MagneticTile", 1)])
    main([str(folder.path), "--images", "4"])
    return folder.path / "report.html"


@pytest.fixture(scope="module")
def browser(report):
    with open_page(report) as page:
        yield page


@pytest.fixture
def page(browser, report):
    """The page as it is when it has just been opened, with empty logs."""
    browser.get("about:blank")
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser.get(report.as_uri())
    browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")  # laid out
    return browser


def choose(page, name, value):
    page.execute_script(
        "const list = document.querySelector(`[name=${arguments[0]}]`); list.value = arguments[1];"
        "list.dispatchEvent(new Event('change', {bubbles: true}))",
        name,
        value,
    )


def requests(page):
    """Addresses that the page asked for, as the browser's own log has them."""
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def wait_for_pictures(page):
    page.execute_async_script("Promise.all([...document.images].map((image) => image.decode())).then(arguments[0])")


def test_no_error_and_no_request(page, report):
    wait_for_pictures(page)
    choose(page, "part", "miss")
    assert page.get_log("browser") == []
    asked = [url for url in requests(page) if not url.startswith("data:")]
    assert asked == [report.as_uri()]


def test_the_policy_forbids_the_network(page):
    blocked = page.execute_async_script(
        "document.addEventListener('securitypolicyviolation', (event) => arguments[0](event.effectiveDirective));"
        "fetch('http://127.0.0.1:9/')"
    )
    assert blocked == "connect-src"


def test_filters_show_the_rows_that_fit(page):
    everything = page.execute_script(ROWS)
    for name, value in (("part", "alarm"), ("data", "MagneticTile"), ("kind", "crack")):
        choose(page, name, value)
        shown = page.execute_script(ROWS)
        assert shown == [row for row in everything if value in row[name].split()]
        assert 0 < len(shown) < len(everything)
        assert page.find_element("css selector", "output").text == f"{len(shown)} of {len(everything)} images"
        choose(page, name, "")
    choose(page, "data", "MagneticTile")
    choose(page, "kind", "hole")
    assert page.execute_script(ROWS) == []
    choose(page, "kind", "")
    choose(page, "data", "")
    assert page.execute_script(ROWS) == everything


def test_a_click_on_a_heading_sorts_and_missing_values_stay_last(page):
    assert page.execute_script(MODELS) == ["Msfd", "MixedTeacher", "Stfpm"]
    latency = page.find_element("xpath", "(//table)[1]//th[.//button[text()='latency ms']]")
    for order, models in (
        ("ascending", ["MixedTeacher", "Msfd", "Stfpm"]),
        ("descending", ["Msfd", "MixedTeacher", "Stfpm"]),
    ):
        latency.find_element("tag name", "button").click()
        assert latency.get_attribute("aria-sort") == order
        assert page.execute_script(MODELS) == models
    page.find_element("xpath", "(//table)[1]//button[text()='Model']").click()
    assert page.execute_script(MODELS) == ["MixedTeacher", "Msfd", "Stfpm"]
    assert latency.get_attribute("aria-sort") is None


def test_a_phone_scrolls_in_one_direction(report):
    with open_page(report, PHONE) as page:
        assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [PHONE[0]] * 2
        panels = "return (({scrollWidth, clientWidth}) => scrollWidth > clientWidth)(document.querySelector('.panels'))"
        assert page.execute_script(panels)


def test_paper_has_every_picture_and_no_control(page):
    wait_for_pictures(page)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    shown = [control.is_displayed() for control in page.find_elements("css selector", "nav, .filters")]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert shown == [False, False]
    whole = len(paper(page))
    pictures = sum(
        len(base64.b64decode(source.split(",")[1]))
        for source in page.execute_script("return [...document.images].map((image) => image.src)")
    )
    page.execute_script("for (const image of document.querySelectorAll('img')) image.remove()")
    assert whole - len(paper(page)) > pictures


def paper(page) -> bytes:
    printed = page.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True, "printBackground": True})
    content = base64.b64decode(printed["data"])
    assert content.startswith(b"%PDF")
    return content


def test_without_script_everything_is_there(report):
    with open_page(report, script=False) as page:
        assert not page.find_element("css selector", ".filters").is_displayed()
        rows = page.find_elements("css selector", ".row")
        assert rows
        assert all(row.is_displayed() for row in rows)
        assert page.find_elements("css selector", "th button") == []


LONG = "MixedTeacher with a label that is much longer than any usual one, 256 x 256, product of both maps, INT8"
SHOWN = """
const named = [...document.querySelectorAll("#tradeoff *")].filter(
  (element) => element.children.length === 0 && element.textContent.includes(arguments[0]));
return named.map((element) => {
  const own = element.getBoundingClientRect(), frame = element.closest("section").getBoundingClientRect();
  return own.width > 0 && own.left >= frame.left && own.right <= Math.min(frame.right, innerWidth);
})
"""


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_long_labels_are_not_cut_in_the_plot_of_accuracy_and_latency(tmp_path, size):
    folder = make_run(tmp_path, (LONG, "Msfd"), {"MagneticTile": ("crack",)}, (0,))
    main([str(folder.path), "--images", "0"])
    with open_page(folder.path / "report.html", size) as page:
        assert page.execute_script(SHOWN, LONG) == [True]
