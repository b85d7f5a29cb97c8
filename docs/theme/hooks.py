"""Hooks of MkDocs for the site: files from outside docs/, GitHub's anchors, no external resources.

The pages are written for GitHub, too: they link to files of the repository, which the site gets as
copies, and to headings by GitHub's anchors.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

CHECKOUT = Path(__file__).parents[2]
# Pages at the top of the repository, by their names in the site.
TOP_PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
WIDE_PAGES = {"comparison.md"}  # have no table of contents beside them
# Files outside docs/ that pages may link to, by folder or name; they are copied to files/.
LINKED = re.compile(r"\]\((?:\.\./)+((?:benchmarks/results/|LICENSE)[^)#]*)\)")
# A short cell that begins with a number.
NUMBERS = re.compile(r"(<td[^>]*>)([-+−]?\d[^<]{0,24})(?=</td>)")
LOADING = {  # elements that make a browser load something, with the attribute that says what
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "object": "data",
    "embed": "src",
}
# Links that nothing is loaded from: what the page is, for search engines.
INERT = {"canonical", "alternate", "prev", "next", "me"}


def slugify(heading: str, separator: str) -> str:
    """Return GitHub's anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def site_text(text: str, name: str) -> str:
    """Return the Markdown of the page `name` with links as they are in the site."""
    if name in TOP_PAGES:
        text = re.sub(r"\]\(docs/", "](", text)
    up = "../" * name.count("/")
    text = LINKED.sub(rf"]({up}files/\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+crkd_cli/[^)]*\)", r"\1", text)


def external_resources(html: str) -> list[str]:
    """Return what a page would load from elsewhere: scripts, styles, fonts and images."""
    collector = _Collector()
    collector.feed(html)
    return collector.found


class _Collector(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        target = given.get(LOADING.get(tag, "")) or ""
        if tag == "link" and set((given.get("rel") or "").split()) <= INERT:
            return
        if re.match(r"(https?:)?//", target):
            self.found.append(target)


def on_config(config: "MkDocsConfig") -> None:
    """Use GitHub's anchors."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify


def on_files(files: "Files", config: "MkDocsConfig") -> None:
    """Add the pages and files from outside docs/."""
    from mkdocs.structure.files import File

    for name, source in TOP_PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(CHECKOUT / source)))
    texts = [file.content_string for file in files if file.is_documentation_page()]
    for path in sorted({path for text in texts for path in LINKED.findall(text)}):
        source = str(CHECKOUT / path)
        files.append(File.generated(config, f"files/{path}", abs_src_path=source))


def on_page_markdown(markdown: str, page: "Page", **unused: Any) -> str:
    """Adapt links to files outside docs/, and give wide pages room."""
    if page.file.src_uri in WIDE_PAGES:
        page.meta["hide"] = ["toc"]
    return site_text(markdown, page.file.src_uri)


def on_page_content(html: str, **unused: Any) -> str:
    """Keep numbers with their intervals in one line of a table."""
    return NUMBERS.sub(lambda cell: cell[1] + cell[2].replace(" ", "&nbsp;"), html)


def on_post_build(config: "MkDocsConfig") -> None:
    """Refuse pages and styles that load anything from another server."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        text = file.read_text(encoding="utf-8")
        found = external_resources(text)
        if file.suffix == ".css":
            found = re.findall(r"""(?:@import|url\()\s*["']?((?:https?:)?//[^"')]+)""", text)
        if found:
            raise PluginError(f"{file} loads from elsewhere: {', '.join(found)}")
