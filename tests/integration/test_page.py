"""Pages in a real browser: no outside requests, and everything is visible, reachable, readable and printable."""

import base64
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from slurm_cluster import left_out

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))

import sample_report as sample

from tlbatch.report.comparison import Domain, named, write_comparison
from tlbatch.report.page import write_page
from tlbatch.runs.report import Estimate

pytestmark = pytest.mark.cluster

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PAGES = ("run", "bare", "classes-33", "classes-70", "comparison", "domains", "long-names")
MOST_TABS = 200
FAINT = """
const luminance = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const parsed = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
const over = (top, share, ground) => top.slice(0, 3).map((v, i) => share * v + (1 - share) * ground[i]);
const ground = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = parsed(getComputedStyle(at).backgroundColor);
    if (colour[3] === 1) return colour.slice(0, 3);
  }
  throw new Error("the page has no background");
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
let seen = 0;
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !element.checkVisibility() || /^(title|desc)$/.test(element.tagName)) continue;
  const style = getComputedStyle(element), inSvg = element.closest("svg") !== null;
  let below = ground(element);
  if (element.matches(".on-heat")) {
    let cell = element;
    while (!cell.matches("rect.heat")) cell = cell.previousElementSibling;
    const cellStyle = getComputedStyle(cell);
    below = over(parsed(cellStyle.fill), Number(cellStyle.fillOpacity), below);
  }
  const [one, other] = [luminance(parsed(inSvg ? style.fill : style.color)), luminance(below)];
  const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  seen += 1;
  if (contrast < 4.5) found.push([walker.currentNode.data.trim(), contrast]);
}
return [seen, found, ground(document.body)];
"""


def missing_programs() -> list[str]:
    return [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    if missing := missing_programs():
        left_out("no browser can be started", f"not on PATH: {', '.join(missing)}")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for option in (*OPTIONS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a page of every kind."""
    folder = tmp_path_factory.mktemp("pages")
    none: dict[str, Any] = {"rival": None, "epochs": [], "mistakes": [], "rejected": [], "pictures": []}
    write_page(folder / "run.html", sample.shown())
    write_page(folder / "bare.html", sample.shown(sample.bare(), **none))
    for number in (33, 70):
        write_page(folder / f"classes-{number}.html", sample.shown(sample.many(number)))
    names = tuple(f"{number}{'w' * 120} {'word ' * 40}" for number in range(5))
    report = sample.report(names=names, run="r" * 150, backbone="b" * 200, versions={"v" * 99: "1" * 99})
    write_page(folder / "long-names.html", sample.shown(report))
    reports = [sample.report(), sample.report(run="second" * 20), sample.report(run="third")]
    worse = Estimate(value=-0.05, low=-0.09, high=-0.01)
    pairs = [(reports[0].run, sample.comparison(other="third")),
             (reports[1].run, sample.comparison(other="third", verdict="worse", difference=worse))]  # fmt: skip
    write_comparison(folder / "comparison.html", [Domain(reports, pairs)])
    others = [sample.report(run="fourth" * 20, job="other", metric="accuracy")]
    write_comparison(folder / "domains.html", named([Domain(reports, pairs), Domain(others)]))
    return folder


def load(browser: webdriver.Chrome, page: Path, *, width: int = 1200, scheme: str = "light") -> None:
    for log in ("browser", "performance"):
        browser.get_log(log)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": features})
    browser.get(page.as_uri())


def requests(browser: webdriver.Chrome) -> list[str]:
    sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    return [one["params"]["request"]["url"] for one in sent if one["method"] == "Network.requestWillBeSent"]


@pytest.mark.parametrize("name", PAGES)
def test_page_loads_completely_without_errors_or_requests(browser: webdriver.Chrome, pages: Path, name: str) -> None:
    page = pages / f"{name}.html"
    load(browser, page)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.get_log("browser") == []
    sent = requests(browser)
    assert page.as_uri() in sent
    assert [url for url in sent if url != page.as_uri() and not url.startswith(("data:", "chrome:"))] == []
    images = browser.execute_script(
        "return [...document.images].map(one => [one.complete && one.naturalWidth > 0, one.alt])"
    )
    assert all(loaded and alt.strip() for loaded, alt in images)
    assert len(images) >= (15 if name == "run" else 0)


def test_outside_requests_are_refused(browser: webdriver.Chrome, pages: Path, tmp_path: Path) -> None:
    """Also shows that the check above would notice them."""
    page = tmp_path / "changed.html"
    text = (pages / "bare.html").read_text()
    foreign = '<script>document.title = "ran"</script><img src="http://127.0.0.1:9/x.png">'
    page.write_text(text.replace("</header>", f"{foreign}</header>"))
    load(browser, page)
    assert len(browser.get_log("browser")) >= 2
    assert browser.title != "ran"


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(browser: webdriver.Chrome, pages: Path, name: str, width: int) -> None:
    load(browser, pages / f"{name}.html", width=width)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    found = browser.execute_script(
        "const wide = [...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll, .skip')"
        " && one.getBoundingClientRect().right > document.documentElement.clientWidth + 1);"
        "const page = document.documentElement;"
        "return [page.scrollWidth - page.clientWidth, wide.map(one => one.outerHTML.slice(0, 80))]"
    )
    assert found == [0, []]


@pytest.mark.parametrize("name", PAGES)
def test_tab_reaches_the_skip_link_first_and_then_every_link_and_region(
    browser: webdriver.Chrome, pages: Path, name: str
) -> None:
    load(browser, pages / f"{name}.html")
    focused = (
        "const one = document.activeElement, at = [...document.querySelectorAll('*')].indexOf(one);"
        "return [one === document.body ? null : at, one.className, getComputedStyle(one).outlineStyle]"
    )
    reached: list[tuple[int, str, str]] = []
    for _ in range(MOST_TABS):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        at, kind, outline = browser.execute_script(focused)
        if at is None or (reached and at == reached[0][0]):
            break
        reached.append((at, kind, outline))
    assert reached[0][1] == "skip"
    assert {outline for _, _, outline in reached} == {"solid"}
    wanted = browser.execute_script(
        "const all = [...document.querySelectorAll('*')];"
        "return all.filter(one => one.matches('a[href], .scroll, summary') && one.checkVisibility())"
        ".map(one => all.indexOf(one))"
    )
    assert sorted(at for at, _, _ in reached) == wanted
    assert browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].every(one => one.getAttribute('role') === 'region'"
        " && one.getAttribute('aria-label'))"
    )


@pytest.mark.parametrize("name", PAGES)
def test_every_picture_has_an_accessible_name(browser: webdriver.Chrome, pages: Path, name: str) -> None:
    load(browser, pages / f"{name}.html")
    drawn = browser.execute_script("return document.querySelectorAll('svg, img').length")
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    images = [one for one in nodes if not one["ignored"] and one["role"]["value"] in ("image", "img")]
    hidden = browser.execute_script("return document.querySelectorAll('details img').length")
    assert len(images) == drawn - hidden
    assert all(one["name"]["value"].strip() for one in images)
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.execute_script("return [...document.querySelectorAll('table')].every(one => one.caption)")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_all_text_contrasts_with_its_background(browser: webdriver.Chrome, pages: Path, name: str, scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG AA), on the cells of the matrix too."""
    load(browser, pages / f"{name}.html", scheme=scheme)
    browser.execute_script("document.querySelectorAll('details').forEach(one => one.open = true)")
    seen, faint, ground = browser.execute_script(FAINT)
    assert seen > 50
    assert faint == []
    assert (sum(ground) < 3 * 128) == (scheme == "dark")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_prints(browser: webdriver.Chrome, pages: Path, name: str) -> None:
    load(browser, pages / f"{name}.html", scheme="dark")
    inside = {"width": 690, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # of A4 with its margins
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", inside)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    page = "document.documentElement"
    assert browser.execute_script(f"return {page}.scrollWidth - {page}.clientWidth") == 0
    hidden = (
        "return [...document.querySelectorAll('details > :not(summary)')].filter(one => !one.checkVisibility()).length"
    )
    assert browser.execute_script(hidden) == 0
    paper = {"paperWidth": 8.27, "paperHeight": 11.69}
    printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", paper)["data"])
    assert printed.startswith(b"%PDF-")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page/") >= (5 if name == "run" else 1)
