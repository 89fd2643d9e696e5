"""Debian's Chromium, driven by Playwright: windows onto this machine alone, with records of requests and errors."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

WIDE, NARROW = (1440, 900), (390, 844)


def missing() -> str:
    """Say what is not here, or nothing."""
    if importlib.util.find_spec("playwright") is None:
        return "Playwright is not installed; `make test-ui` installs it"
    if shutil.which("chromium") is None:
        return "Debian's chromium is not installed; `make test-ui` installs it, as root"
    return ""


@contextmanager
def chromium() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        rights = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=rights)
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page in a window of its own; what it asks of other places than `home` is refused and taken down."""

    page: Any
    home: str
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def _route(self, route: Any) -> None:
        url = route.request.url
        self.asked.append(url)
        if url.startswith(self.home):
            route.continue_()
        else:
            self.refused.append(url)
            route.abort()

    def _complain(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text} ({message.location.get('url', '')})")


@contextmanager
def visit(browser: Any, home: str, size: tuple[int, int] = WIDE, dark: bool = False) -> Iterator[Visit]:
    """Open an empty window; its pages come from URLs that begin with `home`."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", reduced_motion="reduce"
    )
    page = context.new_page()
    found = Visit(page, home)
    context.route("**/*", found._route)
    page.on("console", found._complain)
    page.on("pageerror", lambda error: found.complaints.append(f"exception: {error}"))
    try:
        yield found
    finally:
        context.close()
