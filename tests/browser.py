"""A page as a browser shows it, on a phone and on a desktop."""

import json
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

# Loads the page in frames as wide as a phone and a desktop, and writes what it sees there as JSON.
_LOOK = """<!DOCTYPE html><title>look</title>
<iframe style="width:390px;height:800px;border:0" src="PAGE"></iframe>
<iframe style="width:1280px;height:800px;border:0" src="PAGE"></iframe>
<pre id="seen"></pre>
<script>
const light = c => {
  const [r, g, b] = c.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const parts = text => text.match(/[\\d.]+/g).map(Number);
const behind = (element, view) => {
  for (; element; element = element.parentElement) {
    const found = parts(view.getComputedStyle(element).backgroundColor);
    if (found.length < 4 || found[3] > 0) return found.slice(0, 3);
  }
  return [255, 255, 255];
};
const contrast = (element, view) => {
  const [a, b] = [parts(view.getComputedStyle(element).color).slice(0, 3), behind(element, view)].map(light);
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
};
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
    const all = [...page.querySelectorAll("body *")];
    const own = all.filter(e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
    return {
      language: root.lang, wide: root.scrollWidth, window: root.clientWidth,
      headings: [...page.querySelectorAll("h1, h2, h3")].map(h => Number(h.tagName[1])),
      images: [...page.images].map(i => [i.alt.length, i.naturalWidth, i.getBoundingClientRect().width]),
      sources: [...page.images].map(i => i.currentSrc.length),
      contrast: Math.min(...own.map(e => contrast(e, view))),
      repeated: all.map(e => e.id).filter((id, i, ids) => id && ids.indexOf(id) !== i),
      dead: [...page.links].filter(a => !page.getElementById(a.hash.slice(1))).length,
    };
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


def assert_readable(page: Path, folder: Path, *, figures: int) -> None:
    """No horizontal scrolling, a silent console, headings in order, images with words, readable contrast.

    ``folder`` takes what the browser writes.
    """
    browser = next((found for name in ("chromium", "chromium-browser", "google-chrome")
                    if (found := shutil.which(name))), None)  # fmt: skip
    if browser is None:
        pytest.skip("no chromium on the path; install one to look at the page in it")
    (folder / "look.html").write_text(_LOOK.replace("PAGE", page.as_uri()))
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
               "--disable-background-networking", "--disable-component-update", "--disable-sync",
               "--allow-file-access-from-files", "--enable-logging=stderr", "--hide-scrollbars",
               "--window-size=1700,900",
               f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom",
               (folder / "look.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    (told,) = re.findall(r'<pre id="seen">(.*?)</pre>', done.stdout)
    phone, desktop = json.loads(told)
    assert (phone["window"], desktop["window"]) == (390, 1280)
    for seen in (phone, desktop):
        assert seen["language"] == "en"
        assert seen["wide"] == seen["window"]
        assert seen["headings"][0] == 1
        assert seen["headings"].count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(seen["headings"]))
        assert len(seen["images"]) == figures
        for words, natural, shown in seen["images"]:
            assert words > 20
            assert natural > 0
            assert 0.8 * natural < shown < 1.6 * natural  # lettering keeps about its size
        assert seen["contrast"] >= 4.5
        assert not seen["repeated"]
        assert seen["dead"] == 0
    assert phone["sources"] != desktop["sources"]
