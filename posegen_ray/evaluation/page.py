"""The shell of a report page: one self-contained file that opens offline, without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources


def html_page(
    title: str,
    header: str,  # HTML
    sections: Sequence[tuple[str, str, str]],  # anchor, title, HTML
    footer: str,
) -> str:
    """The whole page as text, with links to its sections."""
    style = resources.files("posegen_ray.evaluation").joinpath("report.css").read_text("utf-8")
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(
        f'<section id="{name}"><h2>{title}</h2>{content}</section>'
        for name, title, content in sections
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{header}"
        f"<nav>{links}</nav><main>{body}</main><footer>{escape(footer)}</footer></body></html>\n"
    )
