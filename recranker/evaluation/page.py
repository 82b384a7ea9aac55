"""The report's page: markup, style and behaviour, without any content of its own.

It stands alone: no font, script or image from elsewhere, and it works from a file.
"""

import re
from string import Template

STYLE = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --paper: #f7f7f5; --card: #ffffff; --ink: #1c2127; --muted: #69737e; --grid: #dfe3e6; --line: #e4e7ea;
  --blue: #0065a3; --orange: #c77f00; --green: #00805c; --purple: #a8558a; --sky: #2f95cf; --red: #bd4a00;
  --good: #00704f; --bad: #b23c00; --soft: #eef4f9; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181c; --card: #1c2127; --ink: #e6e9ec; --muted: #98a2ad;
  --grid: #343b43; --line: #2c333a; --blue: #62b5ec; --orange: #f0b13c; --green: #3fcf9f; --purple: #e0a0c8;
  --sky: #8ccdf5; --red: #ff9257; --good: #4fd6a5; --bad: #ff9a66; --soft: #202a33; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--font); }
main, header.top { max-width: 70rem; margin: 0 auto; padding: 0 1.25rem; }
header.top { padding-top: 2.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .2rem; }
p { margin: .35rem 0; max-width: 52rem; }
.quiet, figcaption { color: var(--muted); font-size: .9rem; }
.headline { font-size: 1.12rem; max-width: 60rem; margin: .9rem 0 1.1rem; }
nav { position: sticky; top: 0; z-index: 5; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 1.1rem; list-style: none; margin: 0 auto; padding: .6rem 1.25rem; max-width: 70rem;
  overflow-x: auto; white-space: nowrap; font-size: .92rem; }
a { color: var(--blue); text-decoration: none; } a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px; border-radius: 3px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 1.2rem 1.3rem;
  margin: 1.1rem 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.45rem; font-weight: 650; font-variant-numeric: tabular-nums; line-height: 1.3; }
.card span { color: var(--muted); font-size: .86rem; }
.scroll { overflow-x: auto; margin: .7rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .36rem .55rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--card); }
th.text, td.text { text-align: left; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; border-bottom: 2px solid var(--line); }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--blue); }
th[aria-sort] button { color: var(--ink); }
th[aria-sort=ascending] button::before { content: "\\2191\\a0"; }
th[aria-sort=descending] button::before { content: "\\2193\\a0"; }
tbody th { font-weight: 500; } tbody tr:hover > * { background: var(--soft); }
tr.baseline > th { color: var(--muted); } tr.served > * { background: var(--soft); }
tr.served > th { font-weight: 700; }
td.up { color: var(--good); } td.down { color: var(--bad); } td.flat { color: var(--muted); }
.tools { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; margin-top: .7rem; }
.tools button, .switch label { font: inherit; font-size: .88rem; color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: .32rem .75rem; cursor: pointer; }
.tools button:hover { background: var(--soft); } .said { color: var(--muted); font-size: .88rem; }
.switch { margin-top: .7rem; } .switch input { position: absolute; opacity: 0; }
.switch label { display: inline-block; margin-right: .35rem; }
.switch input:checked + label { background: var(--blue); border-color: var(--blue); color: var(--card); }
.switch input:focus-visible + label { outline: 2px solid var(--blue); outline-offset: 2px; }
.panel { display: none; }
#all:checked ~ .panel.all, #hits:checked ~ .panel.hits { display: block; }
figure { margin: .6rem 0 0; } figure svg { width: 100%; height: auto; max-width: 54rem; display: block; }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .8rem; align-items: center;
  max-width: 40rem; font-size: .92rem; margin-top: .6rem; }
.bars i { display: block; height: .75rem; border-radius: 4px; background: var(--blue); }
.bars h3 { grid-column: 1 / -1; font-size: .95rem; margin: .5rem 0 0; }
.rail { position: relative; background: var(--line); border-radius: 4px; }
.rail u { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: var(--ink); }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .2rem 1.2rem;
  margin: .6rem 0; font-size: .92rem; }
dt { color: var(--muted); } dd { margin: 0; overflow-wrap: anywhere; }
details > summary { cursor: pointer; font-weight: 600; margin-top: .6rem; }
pre { overflow-x: auto; font-size: .84rem; line-height: 1.45; }
@media (max-width: 40rem) { section { padding: 1rem .9rem; border-radius: 10px; } h1 { font-size: 1.4rem; }
  figure { overflow-x: auto; } figure svg { min-width: 31rem; }
  dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; }
  main, header.top { padding-left: .8rem; padding-right: .8rem; } .cards { grid-template-columns: 1fr 1fr; }
  .card b { font-size: 1.2rem; } }
@media print { nav, .tools, .switch { display: none; } section { break-inside: avoid; } .panel { display: block; } }
"""

SCRIPT = """
const cellsOf = row => [...row.cells];
const valueOf = cell => cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
function sort(table, column) {
  const head = table.tHead.rows[0].cells[column], body = table.tBodies[0], rows = [...body.rows];
  const down = head.ariaSort ? head.ariaSort !== "descending" : column > 0;
  rows.forEach((row, at) => row.dataset.at ??= at);
  const compare = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
  rows.sort((a, b) => (down ? -1 : 1) * compare(valueOf(a.cells[column]), valueOf(b.cells[column]))
    || a.dataset.at - b.dataset.at);
  cellsOf(table.tHead.rows[0]).forEach(cell => cell.removeAttribute("aria-sort"));
  head.ariaSort = down ? "descending" : "ascending";
  body.append(...rows);
}
function textOf(table, markdown) {
  const lines = [...table.rows].map(row => cellsOf(row).map(cell => cell.textContent.trim()));
  if (!markdown) return lines.map(line => line.join("\\t")).join("\\n") + "\\n";
  const line = cells => "| " + cells.map(cell => cell.replaceAll("|", "\\\\|")).join(" | ") + " |";
  const rule = lines[0].map((_, at) => at ? "---:" : "---");
  return [lines[0], rule, ...lines.slice(1)].map(line).join("\\n") + "\\n";
}
async function copy(text) {
  try { await navigator.clipboard.writeText(text); return true; } catch {
    const area = Object.assign(document.createElement("textarea"), {value: text});
    area.style.position = "fixed"; document.body.append(area); area.select();
    const done = document.execCommand("copy"); area.remove(); return done;
  }
}
for (const table of document.querySelectorAll("table.sortable")) {
  cellsOf(table.tHead.rows[0]).forEach((cell, at) => {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: cell.textContent});
    button.addEventListener("click", () => sort(table, at));
    cell.replaceChildren(button);
  });
  const tools = Object.assign(document.createElement("div"), {className: "tools"});
  const said = Object.assign(document.createElement("span"), {className: "said"});
  said.setAttribute("role", "status");
  for (const [name, markdown] of [["Markdown", true], ["TSV", false]]) {
    const button = Object.assign(document.createElement("button"), {type: "button", textContent: "Copy as " + name});
    button.addEventListener("click", async () => {
      said.textContent = await copy(textOf(table, markdown)) ? "Copied as " + name : "The browser did not allow it";
      setTimeout(() => said.textContent = "", 4000);
    });
    tools.append(button);
  }
  tools.append(said);
  table.closest(".scroll").after(tools);
}
"""

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<link rel="icon" href="data:,">
<style>$style</style>
</head>
<body>
<header class="top">
$header
</header>
<nav aria-label="Sections"><ul>$links</ul></nav>
<main>
$sections
</main>
<script>$script</script>
</body>
</html>
""")


def page(title: str, header: str, sections: dict[str, str]) -> str:
    """The whole document.

    Args:
        title: Of the window; escaped already, as is all else.
        header: What stands above the sections.
        sections: Markup of each by its heading, in order.
    """
    ids = {heading: re.sub(r"\W+", "-", heading.lower()) for heading in sections}
    links = "".join(f'<li><a href="#{ids[heading]}">{heading}</a></li>' for heading in sections)
    bodies = "\n".join(
        f'<section id="{ids[heading]}" aria-labelledby="{ids[heading]}-title">'
        f'<h2 id="{ids[heading]}-title">{heading}</h2>\n{body}\n</section>'
        for heading, body in sections.items()
    )
    return _PAGE.substitute(title=title, style=STYLE, header=header, links=links, sections=bodies, script=SCRIPT)
