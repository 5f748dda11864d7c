"""The demo page in a browser: its slider changes the picture, and nothing leaves the page."""

import base64
import functools
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page

from pqvae.images import encode_sheet, to_uint8
from stage2_prior.codec.container import Header, Mode, model_id, pack
from tests.browser import launched, needs_chromium
from tests.conftest import draw_blobs
from tests.web.conftest import WEB, Exported

pytestmark = needs_chromium
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
OURS = "() => document.querySelector('#ours canvas').toDataURL()"
BLANK = """() => [...document.querySelectorAll("figure canvas")].filter((canvas) => {
    const { width, height } = canvas;
    const pixels = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    return pixels.every((value) => value === 0);
}).map((canvas) => canvas.parentElement.id)"""
CODES = [[11, 3, 30, 4, 17, 9, 21, 8, 2, 31], [2, 14, 7, 19, 25, 1, 12, 5, 28, 3]]
NOT_INSTALLED = "not installed: npm install in this folder"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is inherited)
        """Nothing: a test that passes says nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def folder(exported: Exported, tmp_path: Path) -> Path:
    """The page with random weights and no examples, BlurHash or ThumbHash."""
    for name in ("index.html", "demo.js", "pqvae.js"):
        shutil.copy(WEB / name, tmp_path)
    shutil.copy(exported.path, tmp_path)
    (tmp_path / "examples.json").write_text("[]")
    return tmp_path


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of this folder."""
    handler = functools.partial(Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture
def visit(browser: Browser, folder: Path) -> Iterator[Callable[..., Page]]:
    """``visit(viewport)`` opens the page; in the end nothing must have gone wrong there."""
    wrong: list[str] = []
    contexts = []

    def visit(viewport: dict[str, int] = DESKTOP) -> Page:
        contexts.append(browser.new_context(viewport=viewport))  # type: ignore[bad-argument-type]
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(f"{message.text} {message.location}"))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: wrong.append(request.url))
        page.goto(origin)
        page.wait_for_selector("body[data-ready]")
        return page

    with served(folder) as origin:
        yield visit
        for context in contexts:
            context.close()
    # What the page asks of its own server is fine, but that packages are not there is all that
    # may be told as an error.
    ours = (origin, "data:")
    missing = [line for line in wrong if "404" in line and "/node_modules/" in line]
    assert [line for line in wrong if line not in missing and not line.startswith(ours)] == []


def caption(page: Page, panel: str) -> str:
    return page.locator(f"#{panel} figcaption span").inner_text()


def test_the_slider_changes_the_picture_and_what_is_said_of_it(
    visit: Callable[..., Page], exported: Exported
) -> None:
    page = visit()
    slider = page.locator("#bytes")
    assert slider.is_disabled()
    page.locator("#text").fill(exported.text(CODES[0]))
    assert page.locator("#error").inner_text() == ""
    assert caption(page, "ours") == "5 bytes, 7 codes"  # 4 + 4 + 5 x 5 bits are 33
    seen = [page.evaluate(OURS)]
    slider.focus()
    for count, codes in ((4, 6), (3, 5), (2, 3), (1, 2)):
        page.keyboard.press("ArrowLeft")
        assert caption(page, "ours") == f"{count} byte{'s' if count > 1 else ''}, {codes} codes"
        seen.append(page.evaluate(OURS))
    assert len(set(seen)) == 5
    page.keyboard.press("ArrowLeft")  # there is no picture of none
    assert page.evaluate(OURS) == seen[-1]
    page.locator("h1").click()
    slider.blur()
    page.keyboard.press("ArrowRight")  # from anywhere on the page
    assert page.evaluate(OURS) == seen[-2]


def test_the_canvas_shows_the_colours_that_the_weights_say(
    visit: Callable[..., Page], exported: Exported
) -> None:
    page = visit()
    page.locator("#text").fill(exported.text(CODES[0]))
    means = page.evaluate(
        """() => {
            const canvas = document.querySelector("#ours canvas");
            const { width, height } = canvas;
            const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
            return [0, 1, 2].map((colour) => data.filter((_, place) => place % 4 === colour)
                .reduce((sum, value) => sum + value, 0) / (data.length / 4));
        }"""
    )
    expected = to_uint8(exported.weights.decode(torch.tensor(CODES[:1])))[0].float().mean((1, 2))
    # Scaling up keeps means but for the border, whose pixels count a little more.
    torch.testing.assert_close(torch.tensor(means), expected, atol=4, rtol=0)


def test_a_file_that_is_dropped_or_chosen_is_shown_in_its_shape(
    visit: Callable[..., Page], exported: Exported
) -> None:
    page = visit()
    codes, model = exported.payload(CODES[1]), model_id(exported.tokenizer.codes_hash)
    content = pack(Header.of_picture(Mode.FIXED, model, len(codes), 800, 400), CODES[1], codes)
    chosen = {"name": "a.pq", "mimeType": "", "buffer": content}
    page.locator("#file").set_input_files(chosen)  # type: ignore[bad-argument-type]
    page.wait_for_function("() => !document.querySelector('#bytes').disabled")
    assert caption(page, "ours") == "5 bytes, 7 codes"
    box = page.locator("#ours canvas").bounding_box()
    assert box is not None
    assert box["width"] / box["height"] == pytest.approx(2, rel=0.02)
    seen = page.evaluate(OURS)
    page.locator("#bytes").focus()
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(OURS) != seen


def test_bad_input_says_why_and_leaves_the_picture(
    visit: Callable[..., Page], exported: Exported
) -> None:
    page = visit()
    page.locator("#text").fill(exported.text(CODES[0]))
    seen = page.evaluate(OURS)
    page.locator("#text").fill("<b>not one</b>")
    said = page.locator("#error").inner_text()
    assert said.startswith("This cannot be shown: not a placeholder: it has other signs")
    assert page.evaluate(OURS) == seen
    page.locator("#text").fill(exported.text(CODES[1]))
    assert page.locator("#error").inner_text() == ""
    assert page.evaluate(OURS) != seen


def test_without_the_other_packages_it_works_and_says_so(
    visit: Callable[..., Page], exported: Exported
) -> None:
    page = visit()
    page.locator("#text").fill(exported.text(CODES[0]))
    assert caption(page, "blurhash") == caption(page, "thumbhash") == NOT_INSTALLED
    assert page.evaluate(BLANK) == ["blurhash", "thumbhash", "original"]


@pytest.mark.skipif(
    not (WEB / "node_modules" / "thumbhash").is_dir(), reason="npm install in web/ gets them"
)
def test_blurhash_and_thumbhash_are_shown_beside_it(
    visit: Callable[..., Page], folder: Path, exported: Exported
) -> None:
    shutil.copytree(WEB / "node_modules", folder / "node_modules")
    page = visit()
    page.locator("#text").fill(exported.text(CODES[0]))
    assert caption(page, "blurhash").startswith("28 bytes, of what PQ-VAE shows")
    assert "bytes, of what PQ-VAE shows" in caption(page, "thumbhash")
    assert page.evaluate(BLANK) == ["original"]


def test_examples_are_offered_and_the_first_is_shown(
    visit: Callable[..., Page], folder: Path, exported: Exported
) -> None:
    pictures = to_uint8(draw_blobs(2, 48, 0))
    examples = [
        {
            "name": f"picture {index}",
            "placeholder": exported.text(codes),
            "aspect": 1.5,
            "picture": "data:image/webp;base64,"
            + base64.b64encode(encode_sheet(picture.unsqueeze(0), 1)).decode(),
        }
        for index, (codes, picture) in enumerate(zip(CODES, pictures, strict=True))
    ]
    (folder / "examples.json").write_text(json.dumps(examples))
    page = visit()
    assert page.locator("#text").input_value() == examples[0]["placeholder"]
    assert "original" not in page.evaluate(BLANK)
    seen = page.evaluate(OURS)
    page.get_by_role("button", name="picture 1").click()
    page.wait_for_function("(before) => (" + OURS + ")() !== before", arg=seen)
    assert page.locator("#text").input_value() == examples[1]["placeholder"]


def test_without_weights_it_says_how_to_make_them(browser: Browser, folder: Path) -> None:
    (folder / "photos.bin").write_bytes(b"")
    page = browser.new_page()
    with served(folder) as origin:
        page.goto(origin)
        page.wait_for_selector("body[data-ready]")
        said = page.locator("#error").inner_text()
        page.close()
    assert said.startswith("not a file of weights, or damaged; python -m stage2_prior.export_")


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP])
def test_nothing_is_wider_than_the_window_and_targets_are_large(
    visit: Callable[..., Page], exported: Exported, viewport: dict[str, int]
) -> None:
    page = visit(viewport)
    page.locator("#text").fill(exported.text(CODES[0]))
    scrolled, window = page.evaluate(
        "() => [document.documentElement.scrollWidth, window.innerWidth]"
    )
    assert scrolled <= window
    for target in page.locator("#text, #file, #bytes").all():
        box = target.bounding_box()
        assert box is not None
        assert box["height"] >= 44
