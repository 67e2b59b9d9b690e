"""Reading of the page's contents."""

import json
from typing import Any

import numpy as np
from playwright.sync_api import Page
from serving import ROOT

SENTENCE = "I gave my cat Tater a toy"
OTHER = "Mia was shown a letter by Leo"
NOTE = "Attention weights are not explanations by themselves"
AXE = ROOT / "server/web/node_modules/axe-core/axe.min.js"


def violations(page: Page) -> list[str]:
    """Return the violations that axe-core finds on the page."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("axe.run().then(({violations}) => violations)")
    return [json.dumps([each["id"], [node["html"][:200] for node in each["nodes"]]]) for each in found]


def number(text: str) -> float:
    """Read a number in the page's format; one that is too small for its digits is half of what it is below."""
    if text.startswith("<"):
        return float(text[1:]) / 2
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{INFINITY}", "inf"))


def close(shown: Any, true: Any) -> bool:
    """Return whether numbers on the page are the API's, within the displayed digits."""
    return bool(np.allclose(np.array(shown, float), np.array(true, float), rtol=1e-4, atol=6e-5))
