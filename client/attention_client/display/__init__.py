"""Views of attention weights: in a notebook, a terminal, a picture or an HTML page.

Importing the package registers the notebook's view of a result; the viewer itself is loaded when it first draws.
"""

from attention_client.result import AttendResult, register_html_view


def _html(result: AttendResult) -> str:
    from attention_client.display import viewer  # noqa: PLC0415  # a program that draws nothing does not load it

    return viewer.frame(result)


register_html_view(_html)
