"""The leaderboard: every recorded result by data set and method, as one page that needs neither a server nor a script.

A few lines of script, the only ones that the page's policy allows, sort its tables and filter them by words and data
set. Dates are those of the results, so that the same results make the same page, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from recsys.eval.report import number
from recsys.eval.storage import write_text
from recsys.pages.frame import Html, Section, document, facts, table, text
from recsys.pages.markdown import as_html
from recsys.pages.recorded import Measured, Paired, Recorded, Result

FIRST = ("ndcg@10", "hr@10", "mrr@10", "coverage@10")  # the metrics that have a column, the first decides the order
COLUMNS = 6  # of metrics, at most
_ASIDE = re.compile(r"seconds|log-probability|divergence|.* weight")  # no measures of quality, where there are others
_SCRIPT = """
(() => {
  const tools = document.querySelector('.tools'), boards = [...document.querySelectorAll('table.board')];
  const words = tools.querySelector('input'), data = tools.querySelector('select');
  const said = tools.querySelector('output');
  const value = cell => cell.dataset.v ?? cell.textContent.trim();
  const filter = () => {
    const asked = words.value.toLowerCase().split(/\\s+/).filter(Boolean);
    let shown = 0, all = 0;
    for (const board of boards) {
      let own = 0;
      for (const row of board.tBodies[0].rows) {
        const told = (row.textContent + ' ' + board.dataset.data).toLowerCase();
        row.hidden = (data.value && data.value !== board.dataset.data) || !asked.every(word => told.includes(word));
        own += !row.hidden; all += 1;
      }
      board.closest('section').hidden = !own; shown += own;
    }
    said.textContent = shown + ' of ' + all + ' results';
  };
  const sort = (board, head, at) => {
    const down = head.getAttribute('aria-sort') !== 'descending', body = board.tBodies[0];
    const order = (a, b) => {
      const x = value(a.cells[at]), y = value(b.cells[at]);
      if (!x || !y) return !x - !y;
      const found = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -found : found;
    };
    for (const other of board.tHead.rows[0].cells) other.setAttribute('aria-sort', 'none');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    body.append(...[...body.rows].sort(order));
  };
  for (const board of boards) [...board.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement('button');
    button.type = 'button'; button.append(...head.childNodes);
    head.append(button); head.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => sort(board, head, at));
  });
  words.addEventListener('input', filter); data.addEventListener('input', filter);
  tools.hidden = false; filter();
})();
"""


def write_leaderboard(path: str | Path, recorded: Recorded) -> None:
    """Write the page of all recorded results."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for one in recorded.results:
        groups.setdefault((one.data, one.protocol), []).append(one)
    order = sorted(
        groups, key=lambda key: (key[0] == "", key[0], key[1].startswith("as in"), -len(groups[key]), key[1])
    )
    sections = [Section(_called(data, told), _board(data, told, groups[data, told])) for data, told in order]
    sections += [Section("How to read them", _read()), Section("Recorded tables", _tables(recorded))]
    sections.append(Section("Files that are not shown", _others(recorded)))
    write_text(Path(path), document("Leaderboard", sections, _lead(recorded), _SCRIPT))


def _lead(recorded: Recorded) -> str:
    told = [*(one.date for one in recorded.results), *(one.date for one in recorded.tables)]
    dates = sorted(filter(None, told))
    span = f", recorded from {dates[0]} to {dates[-1]}" if dates else ""
    runs = sum(len(one.seeds) for one in recorded.results)
    said = (
        f"{len(recorded.results):,} results of {runs:,} runs and {len(recorded.tables):,} tables{span}. "
        f"{recorded.files:,} files were read"
        + (f", {len(recorded.others):,} are not shown." if recorded.others else ".")
    )
    names = dict.fromkeys(sorted(one.data for one in recorded.results if one.data))
    options = "".join(f'<option value="{text(name)}">{text(name)}</option>' for name in names)
    return (
        f'<p>{text(said)}</p>\n<div class="tools" hidden><label>Filter <input type="search" '
        'placeholder="method, table, date"></label><label>Data <select><option value="">all</option>'
        f'{options}</select></label><output aria-live="polite"></output></div>'
    )


def _called(data: str, told: str) -> str:
    name, title = data or "Data set not told", told.removeprefix("as in the table ")
    if title != told:
        return title if name in title else f"{name}: {title}"
    return f"{name}, {told.partition(' (')[0]}{', history not excluded' if 'not excluded' in told else ''}".rstrip(", ")


def _board(data: str, told: str, results: Sequence[Result]) -> Html:
    """One table: data and protocol are the same, so its numbers may be compared."""
    metrics = _metrics(results)
    ordered = sorted(results, key=lambda one: (-_mean(one, metrics[0]), one.method, one.table))
    most = {
        name: max((one.metrics[name].mean for one in results if name in one.metrics), default=0.0) for name in metrics
    }
    heading = ["method", *metrics, "seeds", "date", "against others"]
    head = "".join(f'<th scope="col">{text(cell)}</th>' for cell in heading)
    rows = "\n".join(f"<tr>{_row(one, metrics, most)}</tr>" for one in ordered)
    note = f'<p class="muted">{text(told)}</p>' if told else ""
    return Html(
        f'{note}<div class="wide" tabindex="0"><table class="board" data-data="{text(data)}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _metrics(results: Sequence[Result]) -> list[str]:
    """The metrics with a column of their own, one at least; the others stand with the command."""
    named = list(dict.fromkeys(name for one in results for name in one.metrics))
    told = [name for name in named if not _ASIDE.match(name)] or named
    return [name for name in FIRST if name in named] or told[:COLUMNS]


def _mean(one: Result, metric: str) -> float:
    return one.metrics[metric].mean if metric in one.metrics else float("-inf")


def _row(one: Result, metrics: Sequence[str], most: dict[str, float]) -> str:
    cells = [f'<td data-v="{text(one.method)}">{text(one.method)}<small>{text(one.table)}</small></td>']
    cells += [_measured(one.metrics.get(name), most[name]) for name in metrics]
    paired = "".join(f"<div>{_against(found)}</div>" for found in one.paired if found.metric == metrics[0])
    leading = next((found.difference for found in one.paired if found.metric == metrics[0]), "")
    seeds = f'<td data-v="{len(one.seeds)}" title="{text(", ".join(map(str, one.seeds)))}">{len(one.seeds)}</td>'
    cells.append(f'{seeds}<td>{text(one.date)}</td><td data-v="{leading}">{paired}{_made(one, metrics)}</td>')
    return "".join(cells)


def _measured(found: Measured | None, most: float) -> str:
    if found is None:
        return "<td></td>"
    shown, drawn = number(found.mean), ""
    if found.low is not None and found.high is not None:
        over = f" over {found.over}" if found.over else ""
        shown = f'{shown} <small title="95%{text(over)}">[{number(found.low)}, {number(found.high)}]</small>'
    if most > 0:
        low, high = (found.mean if one is None else one for one in (found.low, found.high))
        left, right = (min(max(one / most / 1.25, 0.0), 1.0) for one in (low, high))
        drawn = f'<span class="range"><i style="left:{left:.1%};width:{max(right - left, 0.01):.1%}"></i></span>'
    return f'<td data-v="{found.mean:.6g}">{shown}{drawn}</td>'


def _against(found: Paired) -> str:
    sure = found.p_holm < 0.05
    kind = "muted" if not sure else "good" if found.difference > 0 else "bad"
    sign = "" if number(found.difference).startswith("-") else "+"
    return (
        f'<span class="{kind}">{sign}{number(found.difference)}</span> <small>{text(found.reference)}, p '
        f"{number(found.p_holm)}</small>"
    )


def _made(one: Result, metrics: Sequence[str]) -> str:
    """Command, machine, tuning, files, further metrics and the intervals of differences, folded."""
    files = one.files[0] if len(one.files) == 1 else f"{one.files[0]} and {len(one.files) - 1} beside it"
    more = [(name, number(found.mean)) for name, found in one.metrics.items() if name not in metrics]
    changes = [
        (f"against {found.reference}", f"[{number(found.low)}, {number(found.high)}], p {number(found.p)} uncorrected")
        for found in one.paired
        if found.metric == metrics[0]
    ]
    told = facts([("machine", one.machine), ("tuning", one.tuning), *more, *changes, ("recorded in", files)])
    command = f"<pre>{text(one.command)}</pre>" if one.command else ""
    return f"<details><summary>how it was made</summary>{command}{told}</details>"


def _read() -> Html:
    lines = (
        "Each table has one data set and one protocol; numbers of two tables are not to be compared.",
        "Intervals are 95%: Student's t over seeds where there are several, else the bootstrap over users. The bar "
        "below a number is its interval, on one scale for the column.",
        "Against others: the paired difference, user by user, over the seeds that both have, and p of a two-sided "
        "sign-flip test, corrected (Holm) over all methods of that table of benchmarks against the same one. In colour "
        "where p is below .05.",
    )
    return Html("<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>")


def _tables(recorded: Recorded) -> Html:
    shown = []
    for one in recorded.tables:
        made = f" {len(one.of):,} files of results beside it." if one.of else ""
        file = f'<p class="muted">{text(one.file)}.{made}</p>'
        shown.append(f'<details class="more"><summary>{text(one.title)}</summary>{as_html(one.text)}{file}</details>')
    return Html("\n".join(shown))


def _others(recorded: Recorded) -> Html:
    if not recorded.others:
        return Html("")
    return table(["file", "reason"], recorded.others, "text")
