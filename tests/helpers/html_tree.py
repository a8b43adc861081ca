"""An HTML page as a list of its elements, for tests of the report."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr", "base", "embed", "source", "area"}


@dataclass
class Element:
    tag: str
    attributes: dict
    parent: "Element | None"
    children: list = field(default_factory=list)
    parts: list = field(default_factory=list)

    @property
    def text(self):
        return "".join(part if isinstance(part, str) else part.text for part in self.parts)

    def all(self, *tags):
        found = [self] if self.tag in tags or not tags else []
        return found + [element for child in self.children for element in child.all(*tags)]


class _Builder(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = self.here = Element("#document", {}, None)

    def handle_starttag(self, tag, attributes):
        assert len({name for name, _ in attributes}) == len(attributes), (tag, attributes)
        element = Element(tag, dict(attributes), self.here)
        self.here.children.append(element)
        self.here.parts.append(element)
        if tag not in VOID:
            self.here = element

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.here = self.here.parent

    def handle_endtag(self, tag):
        assert self.here.tag == tag, f"</{tag}> closes <{self.here.tag}>"
        self.here = self.here.parent

    def handle_data(self, data):
        self.here.parts.append(data)


def parse(text):
    """The page's root; every element that is opened must be closed in order."""
    builder = _Builder()
    builder.feed(text)
    builder.close()
    assert builder.here is builder.root
    return builder.root


def table(root, caption):
    """The rows of the table with this caption, header first, each cell's text."""
    found = [one for one in root.all("table") if one.all("caption")[0].text.startswith(caption)]
    assert len(found) == 1, (caption, [one.all("caption")[0].text for one in root.all("table")])
    return [[cell.text.strip() for cell in row.all("th", "td")] for row in found[0].all("tr")]


def section(root, name):
    return next(one for one in root.all("section") if one.attributes["id"] == name)
