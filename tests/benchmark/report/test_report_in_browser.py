"""The report as files in a real browser: sorting, filtering, links, and no request."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from builders import make_record

from bdbench.report.site import write_report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs the programs chromium and chromedriver"
)
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
CURVES = [{"epoch": e, "clean_accuracy": e / 9, "attack_success_rate": 0.5} for e in range(9)]
RECORDS = [
    make_record("none", "none", 940, floor=8),
    make_record("none", "badnets", 930, 998, 9),
    make_record("none", "blend", 925, 960, 12),
    make_record("abl", "badnets", 880, 20, 15),
    make_record("abl", "blend"),
    replace(make_record("cbd", "badnets", 890, 12, 11), curves=CURVES),
    make_record("cbd", "blend", 860, 15, 14),
    make_record("mine(name='<b>')", "badnets", 100, 0, 0, flags=("not_finite",)),
    make_record("mine(name='<b>')", "blend", 895, 100, 11),
    make_record("nad", "badnets", 900, 300),
    make_record("ft", "badnets", 900, 400),
]
RECORDS = [
    replace(each, provenance=each.provenance.with_(clean_fraction=0.0))
    if each.labels.defense.startswith("mine")
    else each
    for each in RECORDS
]
ORDER = ["none", "abl", "cbd", "mine(name='<b>')"]
"""The order of the first section; that of the second is nad, ft."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    (folder / "figures").mkdir()
    picture = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
    (folder / "figures" / "triggers.svg").write_text(picture)
    other = [make_record("cbd", "badnets", 700, 900), make_record("abl", "badnets", 881, 21)]
    return write_report(RECORDS, folder, compared=(Path("other"), other)).parent


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def index(browser, home):
    """The first page in a wide window. A line in the log of the browser fails the test."""
    size(browser, 1280)
    browser.get_log("browser")
    browser.get((home / "index.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def size(browser, width):
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def shown(browser, selector):
    return [each.text for each in find(browser, selector) if each.is_displayed()]


def rows(browser):
    """The defenses of the first section, then a bar and those of the second if any is shown."""
    first, second = (
        shown(browser, f".leaderboard tbody:nth-of-type({n}) tr:not(.section) th") for n in (1, 2)
    )
    return [*first, *(["|", *second] if second else [])]


def head(browser, name):
    """The header of a column, by its text for screen readers."""
    named = "return [...document.querySelectorAll('th[data-sort]')]"
    named += ".find((th) => th.textContent.trim() === arguments[0])"
    return browser.execute_script(named, name)


@pytest.mark.parametrize(
    ("column", "rising"),
    [
        ("badnets ASR", ["cbd", "abl", "none", ORDER[3]]),
        ("badnets CA", ["abl", "cbd", "none", ORDER[3]]),
        ("blend ASR", ["cbd", ORDER[3], "none", "abl"]),
        ("none CA", ["none", "abl", "cbd", ORDER[3]]),
        ("DER", [ORDER[3], "cbd", "abl", "none"]),
        ("defense", ["abl", "cbd", ORDER[3], "none"]),
    ],
)
def test_a_click_sorts_and_another_turns_the_order(column, rising, index):
    assert rows(index) == [*ORDER, "|", "nad", "ft"]
    button = head(index, column).find_element("tag name", "button")
    button.click()
    first, second = rows(index)[:4], rows(index)[5:]
    assert first == rising
    assert second == {
        "badnets ASR": ["nad", "ft"],
        "DER": ["ft", "nad"],
        "defense": ["ft", "nad"],
    }.get(column, ["nad", "ft"])
    assert head(index, column).get_attribute("aria-sort") == "ascending"
    button.click()
    with_value = {"badnets ASR": 3, "badnets CA": 3, "blend ASR": 3, "none CA": 1, "DER": 3}
    with_value = with_value.get(column, 4)
    assert rows(index)[:4] == rising[:with_value][::-1] + rising[with_value:]
    assert head(index, column).get_attribute("aria-sort") == "descending"
    head(index, "seconds").find_element("tag name", "button").click()
    assert head(index, column).get_attribute("aria-sort") is None


def test_the_keyboard_is_enough(index):
    from selenium.webdriver import ActionChains, Keys

    def press(*keys):
        ActionChains(index).send_keys(*keys).perform()

    press(Keys.TAB)
    skip = index.switch_to.active_element
    assert skip.text == "Skip to content"
    assert skip.rect["x"] >= 0
    press(Keys.ENTER)
    assert index.current_url.endswith("#main")
    for _ in range(80):
        press(Keys.TAB)
        focused = index.switch_to.active_element
        if focused.accessible_name.startswith("badnets ASR"):
            break
    assert focused.tag_name == "button"
    assert focused.value_of_css_property("outline-style") == "solid"
    press(Keys.SPACE)
    assert rows(index)[0] == "cbd"
    press(Keys.ENTER)
    assert rows(index)[0] == "none"
    assert index.switch_to.active_element == focused
    while index.switch_to.active_element.get_attribute("href") is None:
        press(Keys.TAB)
    press(Keys.ENTER)
    assert index.title != "Backdoor defenses on toy"


def test_a_number_leads_to_its_cell_and_back(index, home):
    link = find(index, ".leaderboard tbody tr:nth-child(4) td[data-m=asr] a")[0]
    assert link.text == "1.2"
    link.click()
    assert index.title == "cbd on badnets, seed 0"
    assert index.current_url == (home / "cells" / f"{RECORDS[5].key}.html").as_uri()
    assert len(find(index, "svg.chart path")) == 2
    assert len(find(index, "svg.chart circle")) == 18
    assert [each.text for each in find(index, "svg.chart .title")] == ["epoch", "percent"]
    index.find_element("xpath", "//summary[.='Numbers']").click()
    assert shown(index, "details td")[-2:] == ["0.888889", "0.5"]
    index.find_element("link text", "Leaderboard").click()
    assert index.current_url.endswith("index.html#table-1")


def test_text_choices_and_metrics_filter(index):
    from selenium.webdriver import Keys

    words = find(index, "input[name=words]")[0]
    words.send_keys("B")
    assert rows(index) == ["abl", "cbd", ORDER[3]]
    words.send_keys("D")
    assert rows(index) == ["cbd"]
    assert shown(index, "output") == ["1 of 6 rows"]
    assert shown(index, ".leaderboard .section") == ["no clean images"]
    assert shown(index, ".heat.asr thead th") == ["cbd"]
    words.send_keys("x")
    assert rows(index) == []
    find(index, "button[type=reset]")[0].click()
    assert rows(index) == [*ORDER, "|", "nad", "ft"]

    attacks, defenses = find(index, ".toolbar summary")
    attacks.click()
    find(index, "input[name=a]")[2].click()
    assert attacks.text == "Attacks: 1 of 3"
    assert shown(index, "[scope=colgroup]") == ["blend"]
    assert shown(index, ".heat.asr tbody th") == ["blend"]
    defenses.click()
    assert not find(index, "input[name=a]")[0].is_displayed()
    find(index, "input[name=d]")[0].click()
    find(index, "input[name=d]")[1].click()
    assert rows(index) == ["none", "abl"]
    find(index, "input[name=d]")[1].send_keys(Keys.ESCAPE)
    assert index.switch_to.active_element == defenses
    assert not find(index, "input[name=d]")[0].is_displayed()
    find(index, "input[name=m][value=ca]")[0].click()
    assert [head(index, name).is_displayed() for name in ("blend CA", "blend ASR")] == [True, False]
    assert [head(index, name).is_displayed() for name in ("mean CA", "mean ASR")] == [True, False]
    assert [each.is_displayed() for each in find(index, "figure .heat")] == [False, True]
    assert find(index, "[scope=colgroup][data-a='2']")[0].get_attribute("colspan") == "1"
    find(index, "button[type=reset]")[0].click()
    assert rows(index) == [*ORDER, "|", "nad", "ft"]
    assert all(each.is_displayed() for each in find(index, ".leaderboard td"))


def test_the_comparison_sorts_and_filters_too(index, home):
    index.get((home / "compare.html").as_uri())
    first = "main tbody tr"
    assert len(shown(index, first)) == 2
    find(index, "th[data-sort='8'] button")[0].click()
    assert [text.split()[1] for text in shown(index, first)] == ["cbd", "abl"]
    find(index, "th[data-sort='8'] button")[0].click()
    assert [text.split()[1] for text in shown(index, first)] == ["abl", "cbd"]
    find(index, "input[name=words]")[0].send_keys("cbd")
    assert len(shown(index, first)) == 1
    find(index, "input[name=m][value=asr]")[0].click()
    assert shown(index, f"{first} td") == ["badnets", "cbd", "1.2", "90.0", "-88.8", "yes"]


def pages(home):
    """One page of each kind."""
    cells = [home / "cells" / f"{RECORDS[number].key}.html" for number in (4, 5)]
    plugins = [home / "defenses" / "cbd.html", home / "attacks" / "badnets.html"]
    return [home / "index.html", home / "compare.html", *plugins, *cells]


def test_pages_request_nothing_outside_the_folder(index, home):
    index.get_log("performance")
    for page in pages(home):
        index.get(page.as_uri())
    log = "\n".join(entry["message"] for entry in index.get_log("performance"))
    asked = set(re.findall(r'"Network\.requestWillBeSent".*?"request":\{.*?"url":"([^"]+)"', log))
    asked.discard("data:,")
    assert {page.as_uri() for page in pages(home)} <= asked
    assert (home / "report.js").as_uri() in asked
    assert [url for url in asked if not url.startswith(home.as_uri())] == []


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_pages_fit_the_screen(width, index, home):
    size(index, width)
    for page in pages(home):
        index.get(page.as_uri())
        assert index.execute_script("return document.documentElement.scrollWidth") <= width, page


def test_on_a_phone_the_table_is_on_the_first_screen(index, home):
    size(index, 390)
    index.get((home / "index.html").as_uri())
    table = find(index, ".leaderboard")[0].rect
    assert table["y"] < 330
    assert table["y"] + find(index, ".leaderboard tbody")[0].rect["height"] < 800
    row = find(index, ".leaderboard tbody:nth-of-type(1) tr")[2]
    name, *numbers = row.find_elements("css selector", "th, td")
    inside = [each.text for each in numbers if each.rect["x"] + each.rect["width"] <= 390]
    assert len(inside) >= 2  # mean CA and mean ASR
    before = name.rect["x"]
    index.execute_script("document.querySelector('.scroll').scrollLeft = 300")
    assert name.rect["x"] == before
    assert not find(index, "input[name=words]")[0].is_displayed()
    find(index, ".filter > summary")[0].click()
    find(index, "input[name=words]")[0].send_keys("cbd")
    assert rows(index) == ["cbd"]


def test_every_download_exists(index, home):
    links = [link for page in pages(home) for link in _downloads(index, page)]
    assert len(links) == 4 * 3 + 2 + 3
    for link in links:
        assert Path(unquote(urlsplit(link).path)).is_file(), link


def _downloads(browser, page):
    browser.get(page.as_uri())
    return [each.get_attribute("href") for each in find(browser, "a[download]")]


def test_pages_are_dark_on_request_and_light_on_paper(index):
    def ground(media, scheme):
        wanted = {"media": media, "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        index.execute_cdp_cmd("Emulation.setEmulatedMedia", wanted)
        colour = find(index, "body")[0].value_of_css_property("background-color")
        return sum(map(int, re.findall(r"\d+", colour)[:3]))

    try:
        assert ground("screen", "light") > 700
        assert ground("screen", "dark") < 100
        assert ground("print", "dark") > 700
        assert not find(index, ".toolbar")[0].is_displayed()
    finally:
        index.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})


def test_pages_without_scripts_lack_only_sorting_and_filtering(index, home):
    index.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        index.get((home / "index.html").as_uri())
        assert rows(index) == [*ORDER, "|", "nad", "ft"]
        assert not find(index, ".toolbar")[0].is_displayed()
        assert find(index, "th button") == []
        find(index, ".leaderboard tbody tr:nth-child(4) td[data-m=asr] a")[0].click()
        assert index.title == "cbd on badnets, seed 0"
    finally:
        index.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
