"""The page in a browser, at the widths of a phone and of a laptop: no complaint, no request, and something to see."""

import json
import shutil
import struct
import subprocess
import zlib
from urllib.parse import urlsplit

import pytest

from runs import watched_run
from simpo_trainer.report.command import report_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

# Hosts that the browser itself asks, for its clock, dictionaries and updates.
OF_THE_BROWSER = (".google.com", ".gvt1.com", ".googleapis.com")

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="apt-get install chromium")]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "mine"
    watched_run(folder, learning_rate=1e-2)
    return report_of([folder])


def shown(content, folder, width, height=2400):
    """What the browser said, the hosts that it asked for the page, and the picture's rows of bytes."""
    (folder / "page.html").write_text(content)
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--enable-logging=stderr"]
    words += [
        f"--user-data-dir={folder}/profile",
        f"--log-net-log={folder}/net.json",
        "--disable-background-networking",
    ]
    words += [f"--window-size={width},{height}", f"--screenshot={folder}/page.png", f"file://{folder}/page.html"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    text = (folder / "net.json").read_text().rstrip().rstrip(",")
    log = json.loads(text if text.endswith("}") else text + "]}")
    urls = [event.get("params", {}).get("url", "") for event in log["events"]]
    hosts = {urlsplit(url).hostname or "" for url in urls if url.startswith("http")}
    asked = {host for host in hosts if not host.endswith(OF_THE_BROWSER)}
    return said, asked, pixels((folder / "page.png").read_bytes())


def pixels(png):
    """The rows of a PNG as filtered bytes, which are all alike in an empty picture."""
    width, height = struct.unpack(">II", png[16:24])
    data, place = b"", 8
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            data += png[place + 8 : place + 8 + length]
        place += 12 + length
    raw = zlib.decompress(data)
    size = len(raw) // height
    return width, height, len({raw[i * size : (i + 1) * size] for i in range(height)})


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_drawn_without_a_complaint_or_a_request(content, tmp_path, width):
    said, asked, (_, height, different) = shown(content, tmp_path, width)
    assert said == [] and asked == set()
    assert different > height / 4


def test_the_browser_would_complain(content, tmp_path):
    """A style or a picture from elsewhere, which the policy forbids."""
    worse = content.replace("<body>", '<body><p style="color: red">x</p><img src="https://127.0.0.1:9/a.png">')
    said, _, _ = shown(worse, tmp_path, 1280)
    assert len(said) >= 2
