"""The page in a browser: what a visitor does with keys, on a phone, by day and by night."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from sampling.found import write_found
from sampling.gallery import main
from stage1_tokenizer import Tokenizer
from stage1_tokenizer.decoder_config import DirectConfig
from stage2_prior import Prior
from tests.browser import launched, needs_chromium
from tests.sampling.gallery_page import HOSTILE

pytestmark = needs_chromium
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}

# Every picture that can be seen, as its pixels; of one that was not drawn they are transparent.
SEEN = """() => [...document.querySelectorAll("main canvas")]
    .filter((canvas) => !canvas.hidden)
    .map((canvas) => canvas.toDataURL())"""
DRAWN = """() => [...document.querySelectorAll("canvas")].map((canvas) => {
    const { width, height } = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    return pixels.every((value, place) => place % 4 !== 3 || value === 255);
})"""
WIDTHS = "() => [document.documentElement.scrollWidth, window.innerWidth]"


@pytest.fixture(scope="module")
def gallery_file(prior: Path, tiny_run: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery with two decoders, a length that was found, and a class of a hostile name."""
    folder = tmp_path_factory.mktemp("gallery")
    tokenizer = Tokenizer.from_pretrained(tiny_run.tokenizer)
    tokenizer.add_decoder("vivid", DirectConfig())
    tokenizer.save_pretrained(folder / "tokenizer")
    model = Prior.from_pretrained(prior)
    model.class_names = (HOSTILE, "squares", "stripes")
    content_hash = model.save_pretrained(folder / "prior")
    found = {"prefix": 2, "temperature": 1.0, "top_p": 0.95, "guidance": 1.0}
    write_found(folder / "prior", {**found, "prior_hash": content_hash})
    page = folder / "page.html"
    arguments = ["--prior", folder / "prior", "--tokenizer", folder / "tokenizer", "--out", page]
    assert main([*map(str, arguments), "--per-class", "2", "--device", "cpu"]) == 0
    return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def visit(browser: Browser, gallery_file: Path) -> Iterator[Any]:
    """``visit(viewport, ...)`` opens the page; in the end nothing must have gone wrong there."""
    wrong: list[str] = []
    contexts = []

    def watch(url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            wrong.append(f"asked for {url}")

    def visit(viewport: Any = DESKTOP, **options: Any) -> Page:
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: watch(request.url))
        page.goto(gallery_file.as_uri())
        page.wait_for_selector("body[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not wrong


def text_of(page: Page, selector: str) -> str:
    return page.locator(selector).inner_text()


def test_all_pictures_are_drawn(visit: Any) -> None:
    page = visit()
    drawn = page.evaluate(DRAWN)
    assert len(drawn) > 50
    assert all(drawn)


def test_arrow_keys_move_the_slider_and_with_it_pictures_and_bits(visit: Any) -> None:
    page = visit()
    assert text_of(page, "#count") == "2 of 6 codes"
    assert "tuned" in text_of(page, "#ticks .start")
    shown = {}
    for key, codes, bits in (
        *(("ArrowLeft", 1, 4), ("ArrowLeft", 1, 4), ("ArrowRight", 2, 8)),
        *(("ArrowRight", 4, 16), ("ArrowRight", 6, 24), ("ArrowRight", 6, 24)),
    ):
        page.keyboard.press(key)  # from anywhere on the page
        assert text_of(page, "#count") == f"{codes} of 6 codes"
        assert text_of(page, "#spent").startswith(f"{bits} bits (")
        shown[codes] = page.evaluate(SEEN)
    assert len({tuple(pictures) for pictures in shown.values()}) == 4
    slider = page.locator("#slider")
    slider.focus()
    page.keyboard.press("ArrowLeft")  # once, though the page listens too
    assert page.evaluate(SEEN) == shown[4]
    assert slider.get_attribute("aria-valuetext") == "4 of 6, 16 bits"


def test_a_choice_of_decoder_changes_the_pictures_and_both_show_both(visit: Any) -> None:
    page = visit()
    vivid = page.evaluate(SEEN)
    page.locator("#views input").first.focus()
    page.keyboard.press("ArrowRight")
    faithful = page.evaluate(SEEN)
    page.keyboard.press("ArrowRight")
    both = page.evaluate(SEEN)
    assert text_of(page, "#count") == "2 of 6 codes"  # these arrows are the radio buttons' own
    assert len(vivid) == len(faithful)
    assert vivid != faithful
    assert set(vivid) | set(faithful) == set(both)


def test_enter_opens_a_picture_and_escape_closes_it(visit: Any) -> None:
    page = visit()
    dialog = page.locator("#detail")
    tile = page.locator("section:has(h2:text-is('Samples')) .tile").nth(2)
    tile.focus()
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    assert text_of(page, "#detail-name") == "squares, sample 1"
    assert dialog.locator(".steps button").count() == 4
    assert dialog.get_by_role("img", name="training picture").count() == 3
    assert text_of(page, "#detail-spent").startswith("2 of 6 codes, 8 bits (")
    page.keyboard.press("ArrowRight")
    assert text_of(page, "#detail-spent").startswith("4 of 6 codes, 16 bits (")
    pressed = dialog.locator(".steps button[aria-pressed=true]")
    assert pressed.inner_text() == "4"
    assert all(page.evaluate(DRAWN))
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tile.evaluate("(tile) => tile === document.activeElement")


def test_the_focus_goes_from_the_decoder_to_the_slider_to_the_pictures_and_is_seen(
    visit: Any,
) -> None:
    page = visit()
    reached = []
    for _ in range(3):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => [document.activeElement.name || document.activeElement.id, "
                "document.activeElement.className]"
            )
        )
    assert reached == [["view", ""], ["slider", ""], ["", "tile"]]
    assert (
        page.locator(".tile:focus-visible").evaluate(
            "(tile) => getComputedStyle(tile).outlineWidth"
        )
        == "3px"
    )


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window(visit: Any, viewport: Any) -> None:
    page = visit(viewport, has_touch=viewport is PHONE)
    for view in ("vivid", "faithful", "both"):
        page.get_by_label(view, exact=True).check()
        scrolled, window = page.evaluate(WIDTHS)
        assert scrolled <= window
        page.locator(".tile").first.click()
        assert page.evaluate(WIDTHS)[0] <= window
        assert page.locator("#detail").evaluate("(it) => it.scrollWidth <= it.clientWidth")
        page.keyboard.press("Escape")
    for target in page.locator("#slider, #views label, .tile").all():
        box = target.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 36


def test_a_hostile_class_name_is_text(visit: Any) -> None:
    page = visit()
    assert page.locator("h3").first.evaluate("(heading) => heading.textContent") == HOSTILE
    page.locator("section:has(h2:text-is('Samples')) .tile").first.click()
    assert HOSTILE in page.locator("#detail-name").evaluate("(heading) => heading.textContent")
    assert page.locator("img").count() == 0
    assert page.evaluate("() => typeof hacked") == "undefined"


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)`` as WCAG 2.1 defines it."""
    values = [int(part) / 255 for part in colour.strip("rgb()").split(",")]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return sum(share * v for share, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(visit: Any, scheme: str) -> None:
    page = visit(color_scheme=scheme)
    style = "(it, name) => getComputedStyle(it)[name]"
    paper = page.locator("body").evaluate(style, "backgroundColor")
    assert (luminance(paper) > 0.5) == (scheme == "light")
    raised = page.locator("#bar").evaluate(style, "backgroundColor")
    for selector, ground in (
        *(("h1", paper), ("#lead", paper), ("#brand", paper), ("section > p", paper)),
        *(("#readout strong", raised), ("#readout", raised), ("#ticks span", raised)),
    ):
        text = page.locator(selector).first.evaluate(style, "color")
        darker, lighter = sorted((luminance(text), luminance(ground)))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, selector  # WCAG AA
