"""The frame and the style sheet of report.html: light, dark and print; nothing is loaded from elsewhere."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

STYLE = """
@page { margin: 14mm; }
:root { color-scheme: light dark;
  --ink: #1b1e23; --soft: #5a626d; --paper: #fff; --line: #d9dde3; --fill: #f4f6f8;
  --blue: #0072b2; --vermillion: #d55e00; --orange: #e69f00; --purple: #cc79a7; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e8eb; --soft: #a3abb6; --paper: #15181c; --line: #343a42; --fill: #1e2227;
  --blue: #56b4e9; --vermillion: #f0803c; } }
@media print { :root { color-scheme: light;
  --ink: #000; --soft: #444; --paper: #fff; --line: #bbb; --fill: #fff;
  --blue: #0072b2; --vermillion: #d55e00; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 1.6rem; line-height: 1.3; margin: 0 0 18px; }
h1 span { display: inline-block; }
h2 { font-size: 1.1rem; margin: 0 0 8px; }
h3 { font-size: 1rem; margin: 16px 0 4px; }
section { margin-top: 36px; }
p { margin: 6px 0; max-width: 75ch; }
small, .facts, figcaption, .ends { color: var(--soft); }
.facts { max-width: none; }
.facts b { color: var(--ink); font-weight: 600; }
.scale { position: relative; height: 14px; border-radius: 7px; background: var(--line); }
.scale i { position: absolute; top: 0; height: 14px; }
.range { background: var(--blue); opacity: .45; border-radius: 7px; min-width: 2px; }
.scale .point { width: 4px; margin-left: -2px; top: -4px; height: 22px; background: var(--ink);
  border-radius: 2px; }
.ends { display: flex; justify-content: space-between; gap: 12px; font-size: .85rem; margin: 6px 0 14px; }
figure { margin: 0; }
svg { display: block; width: 100%; height: auto; max-width: 640px; }
.pictures { display: grid; grid-template-columns: 1.15fr 1fr; gap: 28px 32px; align-items: start; }
.stack { display: grid; gap: 28px; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { padding: 4px 14px 4px 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.settings td { overflow-wrap: anywhere; }
.stage, .ends span:nth-child(odd) { white-space: nowrap; }
.scroll { overflow-x: auto; }
.settings th { font-weight: 500; color: var(--soft); white-space: nowrap; }
.bars td:first-child { width: 9em; }
.bars .n { width: 6em; }
.bar { width: 340px; min-width: 120px; vertical-align: middle; }
.bar i { display: block; height: 10px; border-radius: 3px; background: var(--blue); min-width: 1px; }
pre { background: var(--fill); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px;
  font-size: .85rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.films { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 18px; }
.film video { width: 100%; border-radius: 6px; display: block; background: #000; }
.film:target { outline: 3px solid var(--blue); outline-offset: 4px; border-radius: 4px; }
figcaption { font-size: .88rem; margin-top: 4px; }
ul { margin: 4px 0; padding-left: 1.4em; font-size: .92rem; }
a { color: var(--blue); }
@media (max-width: 760px) { .pictures { grid-template-columns: 1fr; } h1 { font-size: 1.3rem; } }
@media print { main { max-width: none; padding: 0; } body { font-size: 10.5pt; }
  figure, tr, pre { break-inside: avoid; } h2, h3, p { break-after: avoid; }
  .pictures { grid-template-columns: 1fr; } svg { max-width: 13.5cm; }
  table { font-size: 9pt; } .scroll { overflow: visible; } th, td { padding-right: 9px; }
  .films { grid-template-columns: 1fr 1fr; } }
"""
