"""HTML and SVG as text, in which whatever is not markup already is escaped."""

import html


class Markup(str):
    """Text that is HTML; any other text is escaped where it is put into an element."""

    __slots__ = ()


def element(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element; children that are no `Markup` are escaped.

    Args:
        tag: its name.
        children: what is inside, in order.
        attributes: by name, of which a trailing ``_`` is dropped (``class_``) and others become ``-``.
    """
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{_escaped(value)}"' for name, value in attributes.items())
    return Markup(f"<{tag}{given}>{joined(*children)}</{tag}>")


def joined(*children: object) -> Markup:
    """Return children one behind the other."""
    return Markup("".join(child if isinstance(child, Markup) else _escaped(child) for child in children))


def _escaped(value: object) -> str:
    return html.escape(str(value))


def table(head: list[str], rows: list[list[object]], **attributes: object) -> Markup:
    """Return a table; the first cell of a row is its name."""
    cells = [joined(element("th", name, scope="row"), *(element("td", cell) for cell in rest)) for name, *rest in rows]
    titles = joined(*(element("th", title, scope="col") for title in head))
    top = element("thead", element("tr", titles)) if any(head) else ""
    return element("table", top, element("tbody", *(element("tr", row) for row in cells)), **attributes)
