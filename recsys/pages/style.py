"""The style sheet of all pages: colours by name, light and dark, wide and narrow screens, paper."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --muted: #5b6675; --line: #dfe3e8; --page: #f6f7f9; --paper: #ffffff;
  --accent: #1f6fb2; --good: #1c7c45; --bad: #b3372f; --hit: #e2f3e7;
  --s0: #1f6fb2; --s1: #d9822b; --s2: #2a9d6f; --s3: #b3478e; --s4: #7a5cc0; --s5: #8a6d3b; --s6: #4c8c9b; --s7:
  #888f99; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --muted: #9aa6b5; --line: #323b47; --page: #12161c;
  --paper: #1a2029; --accent: #6cb2ee; --good: #64c98c; --bad: #f08a80; --hit: #1f3a2b;
  --s0: #6cb2ee; --s1: #f0a860; --s2: #5fcfa0; --s3: #e48bc4; --s4: #b09cf0; --s5: #cdae78; --s6: #86c5d3;
  --s7: #a6aeb9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1.2rem 1.2rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .7rem; } h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
a { color: var(--accent); } p { margin: .5rem 0; } .muted, small, figcaption small { color: var(--muted); }
header p { max-width: 60rem; margin: .2rem 0; color: var(--muted); overflow-wrap: anywhere; }
nav { display: flex; gap: .3rem 1rem; flex-wrap: wrap; padding: .6rem 0; margin-bottom: .6rem; font-size: 14px; }
nav a { text-decoration: none; } nav a:hover { text-decoration: underline; }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.1rem;
  margin: 0 0 1rem; }
pre, code { font: 13px/1.5 ui-monospace, monospace; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--page); border-radius: 6px; margin: .4rem 0;
  padding: .7rem .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; display: flex; flex-direction:
  column; }
.card span { color: var(--muted); font-size: 13px; }
.card strong { font-size: 1.7rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.card small { font-size: 12.5px; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody tr:hover { background: color-mix(in srgb, var(--accent) 7%, transparent); }
table.text td, table.text th { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem; }
td.best { font-weight: 700; } .good { color: var(--good); } .bad { color: var(--bad); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.2rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: .2rem; }
figcaption small { display: block; font-weight: 400; }
figure svg { width: 100%; height: auto; display: block; } svg * { stroke-linejoin: round; stroke-linecap: butt; }
figure.broad { grid-column: 1 / -1; max-width: 60rem; }
details { margin: .3rem 0; } summary { cursor: pointer; color: var(--muted); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .2rem 1.5rem;
  margin: .4rem 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
  padding: .25rem 0; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; flex: 0 0 auto; max-width: 62%; }
table.bars { width: 100%; } table.bars td { border: 0; padding: .12rem .5rem; }
table.bars td:first-child { width: 30%; white-space: normal; overflow-wrap: anywhere; }
table.bars td:nth-child(2) { width: 58%; } table.bars td:last-child { text-align: left; }
.bar { display: block; height: .85rem; min-width: 0; background: var(--s0); border-radius: 2px; }
.split { display: flex; height: .85rem; min-width: 9rem; border-radius: 2px; overflow: hidden; }
.split i { display: block; height: 100%; } .win { background: var(--s2); } .tie { background: var(--line); }
.loss { background: var(--s1); }
.range { display: block; position: relative; height: .3rem; margin-top: .15rem; background: var(--line);
  border-radius: 2px; } .range i { position: absolute; top: 0; height: 100%; background: var(--s0); border-radius:
  2px; }
table.board td { vertical-align: top; } table.board details { text-align: left; max-width: 24rem; white-space: normal; }
table.board .facts { grid-template-columns: 1fr; font-size: 12.5px; } td:first-child small { display: block; }
table.board th:first-child, table.board td:first-child { position: sticky; left: 0; background: var(--paper);
  z-index: 1; } table.board details[open] { width: 17.2rem; max-width: 75vw; }
table.board td:last-child, table.board th:last-child { text-align: left; padding-left: 1rem; }
table.board .facts dd { flex: 0 1 auto; }
table.board td:first-child { min-width: 7.5rem; max-width: 12rem; white-space: normal; }
table.board th, table.board td { padding: .3rem .45rem; } table.board td:first-child { padding-left: 0; }
.key { display: inline-block; width: .8rem; height: .8rem; border-radius: 2px; margin: 0 .35rem 0 .9rem;
  vertical-align: -1px; }
.people { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem; }
.person { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; min-width: 0; }
.person h3 { margin-top: 0; overflow-wrap: anywhere; } .person ol { margin: .2rem 0 .6rem; padding-left: 1.7rem; }
.person li { overflow-wrap: anywhere; } .person li span { color: var(--muted); float: right; font-size: 12.5px; }
.person ul { margin: .2rem 0 .6rem; padding-left: 1.1rem; color: var(--muted); }
li.hit { background: var(--hit); font-weight: 600; border-radius: 4px; }
.note { border-left: 3px solid var(--s1); padding: .2rem .8rem; }
.tools { display: flex; gap: .8rem; flex-wrap: wrap; margin: .2rem 0 1rem; } .tools[hidden] { display: none; }
input, select { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--line);
  border-radius: 6px; padding: .35rem .6rem; max-width: 100%; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align:
  inherit; }
th[aria-sort] button::after { content: " \\2195"; opacity: .45; }
th[aria-sort=ascending] button::after { content: " \\2191"; opacity: 1; }
th[aria-sort=descending] button::after { content: " \\2193"; opacity: 1; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
@media (max-width: 40rem) { body { padding: .7rem .7rem 3rem; } section { padding: .8rem; } .card strong { font-size:
  1.4rem; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); } th, td { padding: .3rem .5rem; } }
@media print { :root { color-scheme: light; --ink: #000000; --muted: #444444; --line: #cccccc; --page: #ffffff;
  --paper: #ffffff; --accent: #000000; --hit: #eeeeee; --s0: #1f6fb2; --s1: #d9822b; --s2: #2a9d6f; --s3: #b3478e;
  --s4: #7a5cc0; --s5: #8a6d3b; --s6: #4c8c9b; --s7: #888f99; --good: #1c7c45; --bad: #b3372f; }
  body { max-width: none; padding: 0; font-size: 10.5pt; } nav, .tools, details:not([open], .more) { display: none; }
  details.more::details-content { content-visibility: visible; }
  section { border: 0; padding: .5rem 0; } figure, .card, .person, tr { break-inside: avoid; }
  h2, h3 { break-after: avoid; } .wide { overflow: visible; } table { font-size: 9pt; }
  th, td { white-space: normal; padding: .2rem .4rem; } .bar, .split i, .key, li.hit { print-color-adjust: exact; } }
"""
