"""The page in a browser: both modes by mouse and by keyboard, on a phone, with the server gone."""

import itertools
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

import pytest
from axe_core_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, sync_playwright

from mars2.rating.database import RatingDatabase

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

Begin = Callable[..., RatingDatabase]
Show = Callable[..., AbstractContextManager[str]]
SCRIPT = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that fails the test if anything goes wrong or is asked of another server."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(120_000)  # a busy machine is no fault of the page
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on(
        "console",
        lambda message: (
            wrong.append(message.text)
            if message.type == "error" and "ERR_" not in message.text
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if urlsplit(request.url).hostname == "127.0.0.1"
            else wrong.append(f"asked for {request.url}")
        ),
    )
    yield page
    context.close()
    assert wrong == []


def link(base: str, database: RatingDatabase, rater: int = 0) -> str:
    return f"{base}/{database.seats()[rater].token}/"


def heading(page: Page, number: int) -> None:
    """Wait until a question and its images are there."""
    page.wait_for_selector(f"#heading:text-matches('^Question {number} of')", state="attached")
    page.wait_for_selector("#stage:not(.waiting)")


def said(database: RatingDatabase, rater: int = 0) -> dict[tuple[int, str], str]:
    return {(one.position, one.aspect): one.answer for one in database.answers(rater)}


def test_single_images_by_mouse(begin: Begin, show: Show, page: Page):
    database = begin(sample=1, check_every=0)
    with show(database) as base:
        page.goto(f"{base}/{database.join_token}/")
        page.fill("#name", SCRIPT)
        page.click("text=Start")
        assert page.url == link(base, database)
        assert page.inner_text("#intro-title").startswith("Welcome, <img")
        page.click("#begin")
        expected = {}
        for position in range(3):
            heading(page, position + 1)
            for aspect in ("style", "subject"):
                answer = ("yes", "no")[(position + (aspect == "style")) % 2]
                page.click(f"fieldset.{aspect} .choice.{answer}")
                expected[position, aspect] = answer
        page.wait_for_selector("#end:visible")
        page.wait_for_selector("text=All questions are answered and saved")
        assert said(database) == expected
        assert page.inner_text("#progress") == "All 3 answered"
        assert page.title() == "Rating images"
        assert [one.name for one in database.seats()] == [" ".join(SCRIPT.split())]


def test_single_images_by_keyboard_back_and_changed(begin: Begin, show: Show, page: Page):
    database = begin(sample=1, check_every=0)
    with show(database) as base:
        page.goto(link(base, database))
        page.wait_for_selector("#begin:enabled")
        page.keyboard.press("Enter")  # the button has the focus
        heading(page, 1)
        page.keyboard.press("y")
        page.keyboard.press("n")
        heading(page, 2)
        page.keyboard.press("2")
        page.keyboard.press("b")  # back to the first question of the same image
        page.keyboard.press("1")
        page.keyboard.press("1")
        heading(page, 3)
        page.keyboard.press("Backspace")
        heading(page, 2)
        page.keyboard.press("b")
        heading(page, 1)
        page.keyboard.press("Enter")
        heading(page, 2)
        page.keyboard.press("n")
        page.keyboard.press("n")
        heading(page, 3)
        page.keyboard.press("Control+y")  # the browser's, not an answer
        page.keyboard.press("?")
        page.wait_for_selector("#intro:visible")
        page.keyboard.press("Enter")
        heading(page, 3)
        page.keyboard.press("Y")
        page.keyboard.press("Y")
        page.wait_for_selector("text=All questions are answered and saved")
    assert [said(database)[key] for key in sorted(said(database))] == [
        "no", "yes",  # style and subject of the first
        "no", "no",
        "yes", "yes",
    ]  # fmt: skip
    assert sum(one.changes for one in database.answers(0)) == 3


def test_pairs_by_keyboard_and_mouse(begin: Begin, show: Show, page: Page):
    database = begin(mode="pairs", aspects=("subject", "both"), sample=2, check_every=0)
    keys = {"left": "ArrowLeft", "right": "ArrowRight", "tie": "ArrowDown", "both_bad": "ArrowUp"}
    answers = itertools.cycle([*keys, "left"])
    with show(database) as base:
        page.goto(link(base, database))
        page.click("#begin")
        expected = {}
        for position in range(6):
            heading(page, position + 1)
            assert page.locator("#images img").count() == 2
            for aspect in ("subject", "both"):
                answer = next(answers)
                if position < 3:
                    page.keyboard.press(keys[answer])
                else:
                    page.click(f"fieldset.{aspect} .choice.{answer}")
                expected[position, aspect] = answer
        page.wait_for_selector("text=All questions are answered and saved")
    assert said(database) == expected


def test_the_second_part_is_explained_before_it_begins(begin: Begin, show: Show, page: Page):
    database = begin(mode="both", sample=1, check_every=0)
    for position in range(3):
        for aspect in ("subject", "style"):
            if (position, aspect) != (2, "style"):
                database.record(0, position, aspect, "yes", 1.0)
    with show(database) as base:
        page.goto(link(base, database))
        page.wait_for_selector("#intro section[data-mode=pairs]", state="hidden")
        page.click("#begin")  # and go on where it was: at the one question without an answer
        heading(page, 3)
        assert page.get_attribute("fieldset.subject .yes", "aria-pressed") == "true"
        page.keyboard.press("n")
        page.wait_for_selector("text=Part 2 of 2")
        assert not page.is_visible("#intro section[data-mode=yes_no]")
        page.keyboard.press("Enter")
        heading(page, 4)
        assert page.locator("fieldset").count() == 1


def test_scripts_in_notes_do_not_run(begin: Begin, show: Show, page: Page):
    database = begin(sample=1, check_every=0)
    with show(database) as base:
        page.goto(link(base, database))
        page.click("#begin")
        heading(page, 1)
        page.click("#remark summary")
        page.focus("#note")
        page.keyboard.type(SCRIPT + " yny")  # letters in a note are no answers
        page.click("fieldset.subject .yes")
        page.click("fieldset.style .yes")
        heading(page, 2)
        page.wait_for_selector("#saved:text-is('Saved')")
        assert database.notes(0) == {0: SCRIPT + " yny"}
        assert len(said(database)) == 2
        page.reload()
        page.click("#begin")
        heading(page, 2)
        page.keyboard.press("b")
        heading(page, 1)
        assert page.input_value("#note") == SCRIPT + " yny"
        assert page.title() == "Rating images"


def test_answers_wait_for_a_server_that_is_gone(begin: Begin, show: Show, page: Page):
    database = begin(sample=2, check_every=0)
    with show(database) as base:
        page.goto(link(base, database))
        page.click("#begin")
        heading(page, 1)
        port = int(base.rpartition(":")[2])
        page.wait_for_load_state("networkidle")  # the next images are there, too
    page.keyboard.press("y")
    page.keyboard.press("n")
    heading(page, 2)
    page.keyboard.press("y")
    page.wait_for_selector("text=Not saved yet")
    assert said(database) == {}
    with show(database, port):
        page.wait_for_selector("#saved:text-is('Saved')")
        assert said(database) == {
            (0, "subject"): "yes", (0, "style"): "no", (1, "subject"): "yes"
        }  # fmt: skip


def test_answers_that_were_not_sent_are_when_the_page_is_opened_again(
    begin: Begin, show: Show, page: Page
):
    database = begin(sample=1, check_every=0)
    blocked = threading.Event()
    blocked.set()

    def answer(route: Route) -> None:
        if blocked.is_set():
            route.abort()
        else:
            route.continue_()

    page.route("**/answers", answer)
    page.on("dialog", lambda dialog: dialog.accept())  # "leave, though not all is saved?"
    with show(database) as base:
        page.goto(link(base, database))
        page.click("#begin")
        heading(page, 1)
        page.keyboard.press("n")
        page.wait_for_selector("text=Not saved yet")
        blocked.clear()
        page.reload()
        page.wait_for_selector("#saved:text-is('Saved')")
        assert said(database) == {(0, "subject"): "no"}
        page.click("#begin")
        assert page.get_attribute("fieldset.subject .no", "aria-pressed") == "true"


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width", "height"), [("light", 1280, 800), ("dark", 380, 720)])
def test_no_one_is_shut_out(
    begin: Begin, show: Show, browser: Browser, scheme: str, width: int, height: int
):
    database = begin(
        mode="both", aspects=("subject", "style", "both"), raters=2, per_item=2, sample=1
    )
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        reduced_motion="reduce",
        is_mobile=width < 500,
        has_touch=width < 500,
        bypass_csp=True,  # for axe only
    )
    page = context.new_page()
    page.set_default_timeout(120_000)

    def check(fits: bool = False) -> None:
        page.wait_for_timeout(50)
        found = Axe().run(page)["violations"]
        assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
        sizes = "document.documentElement.scrollWidth <= window.innerWidth"
        assert page.evaluate(sizes), "it scrolls sideways"
        if fits:
            below = page.evaluate("document.querySelector('fieldset').getBoundingClientRect()")
            assert below["bottom"] <= height, "the answers are below the screen"

    with show(database) as base:
        page.goto(f"{base}/{database.join_token}/")
        check()
        page.goto(link(base, database))
        page.wait_for_selector("#begin:enabled")
        check()
        page.click("#begin")
        heading(page, 1)
        check(fits=True)
        while page.is_visible("fieldset.subject"):
            number = int(re.findall(r"\d+", page.inner_text("#heading"))[0])
            page.click("fieldset.subject .yes")
            check() if number == 1 else None
            page.click("fieldset.style .no")
            page.wait_for_function(
                f"at + 1 > {number} && (ready || !document.getElementById('intro').hidden)"
            )
        check()
        page.click("#begin")
        page.wait_for_function("ready")
        check(fits=True)
        page.click("#images button >> nth=0")
        page.wait_for_selector("dialog[open]")
        check()
        page.keyboard.press("Escape")
        page.evaluate("finish()")
        check()
    context.close()
