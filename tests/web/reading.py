"""How the tests read numbers off the page."""

from typing import Any

import numpy as np

SENTENCE = "I gave my cat Tater a toy"


def number(text: str) -> float:
    """Read a number as the page writes it."""
    return float(text.replace("\N{MINUS SIGN}", "-").replace("\N{INFINITY}", "inf"))


def close(shown: Any, true: Any) -> bool:
    """Whether numbers on the page are the API's, within the digits that are written."""
    return bool(np.allclose(np.array(shown, float), np.array(true, float), rtol=1e-4, atol=6e-5))
