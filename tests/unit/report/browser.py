"""Debian's Chromium without a window, for the report's test and for the pictures in the documentation.

``python tests/unit/report/browser.py RUN/report.html docs/images`` takes the pictures of docs/report.md anew.
"""

import io
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from selenium import webdriver

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
DESKTOP, PHONE = (1280, 1000), (390, 844)


@contextmanager
def open_page(path: Path, size: tuple[int, int] = DESKTOP, script: bool = True) -> Iterator[webdriver.Chrome]:
    """Open a file in a browser that keeps a log of its console and its network; sizes are in CSS pixels."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    try:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        if not script:
            driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
        driver.get(path.resolve().as_uri())
        yield driver
    finally:
        driver.quit()


def photograph(driver: webdriver.Chrome, selector: str) -> Image.Image:
    """Photograph the window with an element at its top, once the pictures in sight are there."""
    driver.execute_script(
        "document.documentElement.style.scrollBehavior = 'auto'; document.querySelector(arguments[0]).scrollIntoView()",
        selector,
    )
    driver.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.images].map((image) => image.decode())).then(() => requestAnimationFrame(done))"
    )
    return Image.open(io.BytesIO(driver.get_screenshot_as_png()))


def save_small(image: Image.Image, path: Path) -> None:
    """Write a PNG of the upper part in 64 colours, rare ones among them."""
    upper = image.crop((0, 0, image.width, 740)).convert("RGB")
    upper.quantize(64, Image.Quantize.MAXCOVERAGE, kmeans=3).save(path, optimize=True)


if __name__ == "__main__":
    report, folder = Path(sys.argv[1]), Path(sys.argv[2])
    with open_page(report) as page:
        for name, where in {"verdict": "body", "images": "#gallery"}.items():
            save_small(photograph(page, where), folder / f"report-{name}.png")
