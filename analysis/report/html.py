"""HTML by hand: escaped text, sortable tables, figures inside the page, its style and its script.

Takes plain text, gives HTML. Every text passes through `html.escape` here and nowhere
else; nothing it writes loads anything from outside the page.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, faint lines under it, what it sorts by, how it stands out."""

    text: str
    under: tuple[str, ...] = ()
    key: float | None = None  # sorts by this number; by its text when None
    mark: str = ""  # "gap": something is missing here


def text(value: str) -> str:
    """Escaped text."""
    return html.escape(value, quote=True)


def paragraph(value: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{text(kind)}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def table(
    heads: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, caption: str, numbers: int = 0
) -> str:
    """A table whose columns sort by a click on their heading.

    The last `numbers` columns are set flush right, as numbers are.
    """
    first_number = len(heads) - numbers
    kind = ['class="n"' if at >= first_number else "" for at in range(len(heads))]
    head = "".join(
        f'<th scope="col" {kind[at]}><button type="button">{text(name)}</button></th>'
        for at, name in enumerate(heads)
    )
    body = "".join(
        f"<tr>{''.join(_cell(one, at >= first_number) for at, one in enumerate(row))}</tr>\n"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )


def _cell(cell: Cell | str, number: bool) -> str:
    cell = Cell(cell) if isinstance(cell, str) else cell
    kinds = " ".join(word for word in ("n" if number else "", cell.mark) if word)
    key = "" if cell.key is None else f' data-key="{cell.key!r}"'
    mark = f' class="{text(kinds)}"' if kinds else ""
    under = "".join(f"<small>{text(line)}</small>" for line in cell.under)
    return f"<td{mark}{key}>{text(cell.text)}{under}</td>"


def figure(svg: str, title: str, caption: str, name: str) -> str:
    """A figure held by the page itself (an `<svg>` element of `inline`), with its caption."""
    return (
        f'<figure id="{text(name)}"><h3>{text(title)}</h3>{svg}'
        f"<figcaption>{text(caption)}</figcaption></figure>\n"
    )


def section(name: str, title: str, *parts: str) -> str:
    """A titled part of the page; nothing when it has no content."""
    content = "".join(parts)
    if not content:
        return ""
    return f'<section id="{text(name)}"><h2>{text(title)}</h2>\n{content}</section>\n'


def page(title: str, body: str) -> str:
    """The whole document."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><main>\n{body}</main>\n<script>{_SCRIPT}</script></body></html>\n"
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--faint:#59636e;--line:#d8dee4;--back:#fff;
--soft:#f5f7f9;--warn:#fff4e0;--warnline:#e69f00;--accent:#0072b2}
@media (prefers-color-scheme:dark){:root{--ink:#e4e7eb;--faint:#9aa4af;--line:#383f47;
--back:#15181c;--soft:#1d2126;--warn:#33290f;--warnline:#b97f00;--accent:#56b4e9}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 24px 64px}
h1{font-size:27px;line-height:1.2;margin:.1em 0 .35em;overflow-wrap:anywhere}
h2{font-size:20px;margin:2.2em 0 .6em;padding-top:.7em;border-top:1px solid var(--line)}
h3{font-size:15px;margin:0 0 .5em}
.kicker,.facts,figcaption,small,caption,.faint{color:var(--faint)}
.kicker{margin:0;font-size:13px;letter-spacing:.02em}
.facts{margin:0 0 1.1em;font-size:13.5px}
.answer{font-size:17px;font-weight:600;margin:.2em 0 .6em}
.sure{background:var(--soft);border-left:4px solid var(--accent);padding:9px 13px;margin:0 0 1em}
.unsure{background:var(--warn);border-left-color:var(--warnline)}
dl.answers{display:grid;grid-template-columns:max-content 1fr;gap:.55em 1.2em;margin:0 0 1.4em}
dl.answers dt{font-weight:600}dl.answers dd{margin:0}
nav{font-size:13.5px;margin:0 0 1.4em}nav a{color:var(--accent);margin-right:1.1em}
.scroll{overflow-x:auto;margin:0 0 1.4em}
table{border-collapse:collapse;font-size:13.5px;width:100%}
caption{text-align:left;padding:0 0 .5em;font-size:13.5px}
th,td{padding:5px 12px 5px 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
td{overflow-wrap:break-word}
th{white-space:nowrap;border-bottom:1.5px solid var(--faint)}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap;padding:5px 0 5px 13px}
td small{display:block;font-size:11.5px;line-height:1.35}
td.gap{background:var(--warn)}
td.yes,td.no,td.open{font-weight:600;white-space:nowrap}
td.yes::before,.claim.yes h3::before{content:"\\2713\\00a0"}
td.no::before,.claim.no h3::before{content:"\\2717\\00a0"}
td.open::before,.claim.open h3::before{content:"?\\00a0"}
td.yes,.claim.yes{border-left:4px solid #009e73;padding-left:9px}
td.no,.claim.no{border-left:4px solid #d55e00;padding-left:9px}
td.open,.claim.open{border-left:4px solid var(--line);padding-left:9px}
.claim{margin:0 0 1.2em;padding-left:13px}.claim p{margin:.2em 0}
.claim dl{display:grid;grid-template-columns:minmax(10em,max-content) 1fr;gap:.2em 1.2em;
margin:.4em 0;font-size:13.5px}.claim dd{margin:0}.claim dd small{display:block}
th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid var(--accent)}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
figure{margin:0 0 1.8em}
figure svg{display:block;width:100%;height:auto;background:#fff;border-radius:6px;
border:1px solid var(--line)}
figcaption{font-size:13.5px;margin-top:.5em}
code{font-size:12.5px;overflow-wrap:anywhere}
@media (max-width:700px){dl.answers{grid-template-columns:1fr;gap:.1em}
dl.answers dd{margin-bottom:.8em}}
@media print{:root{--ink:#000;--faint:#444;--line:#bbb;--back:#fff;--soft:#f4f4f4;--warn:#f4ead6}
body{font-size:11pt}main{max-width:none;padding:0}nav{display:none}
#cells{display:none}h2{break-after:avoid}figure,tr,.sure,.claim{break-inside:avoid}.scroll{overflow:visible}
table{font-size:8.5pt}th button::after{content:""!important}}
"""

_SCRIPT = """
document.querySelectorAll("th button").forEach(function (button) {
  button.addEventListener("click", function () {
    var head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
    var at = Array.prototype.indexOf.call(head.parentNode.children, head);
    var up = head.getAttribute("aria-sort") !== "ascending";
    head.parentNode.querySelectorAll("th").forEach(function (th) {
      th.removeAttribute("aria-sort");
    });
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    var rows = Array.prototype.slice.call(body.rows).map(function (row) {
      var cell = row.cells[at], key = cell.getAttribute("data-key");
      return {row: row, key: key === null ? null : parseFloat(key), text: cell.textContent};
    });
    rows.sort(function (a, b) {
      var order;
      if (a.key !== null && b.key !== null) { order = a.key - b.key; }
      else if (a.key !== null || b.key !== null) { order = a.key === null ? 1 : -1; }
      else { order = a.text.localeCompare(b.text, undefined, {numeric: true}); }
      return up ? order : -order;
    });
    rows.forEach(function (one) { body.appendChild(one.row); });
  });
});
"""
