"""Make the README's picture: the page, a synthetic film chosen on it, the answer with its evidence. Never a real film.

    python docs/screenshot.py [--checkpoint bundled] [--example Effusion] [--out docs/page.png] [--dark]

Needs Chromium and the `ui-test` extra. Starts a server of its own on free ports and ends it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # runs from a fresh clone as well

from app.examples import EXAMPLES
from app.ui import build_page, launch
from foundation.errors import VesaliusError
from serving.client import Client
from serving.config import EngineConfig, ServerConfig
from serving.server import background

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="Make the README's picture of the page.")
    parser.add_argument("--checkpoint", default="bundled")
    parser.add_argument("--adapters", help="your own adapters' folder")
    parser.add_argument("--example", default="Effusion", choices=[one.name for one in EXAMPLES])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "page.png")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    engine = EngineConfig(checkpoint=options.checkpoint, adapters_dir=options.adapters)
    try:
        with background(ServerConfig(port=0, engine=engine)) as url, Client(url) as client:
            page = build_page(client)
            try:
                picture(launch(page, None, block=False), options.example, options.out, dark=options.dark)
            finally:
                page.close(verbose=False)
    except VesaliusError as error:
        print(error.message, file=sys.stderr)
        return 2
    print(options.out)
    return 0


def picture(address: str, example: str, out: Path, *, dark: bool = False) -> None:
    """Choose the example, wait for its whole answer and save the window as a PNG."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, CHROMIUM)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(ARGUMENTS))
        scheme = "dark" if dark else "light"
        window = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme, device_scale_factor=1.5)
        window.goto(address)
        window.get_by_role("img", name=example, exact=True).click()
        window.wait_for_selector("#evidence .bars, #evidence .refusal", timeout=120_000)
        window.wait_for_timeout(1500)  # the heat map is drawn after the answer
        window.screenshot(path=out)
        browser.close()


if __name__ == "__main__":
    raise SystemExit(main())
