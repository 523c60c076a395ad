"""Results as tables: on the console, in Markdown, and between the markers of RESULTS.md."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.result import Entry, Result, command, machine, now, versions
from recipes.tracking import number

RESULTS = Path(__file__).with_name("RESULTS.md")
WIDTH = 150
"""Columns of a table on the console."""
BEGIN, END = "<!-- speed: begin (written by python -m benchmarks) -->", "<!-- speed: end -->"


class Sheet(NamedTuple):
    """A table, and what is to be known of it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]

    def markdown(self) -> str:
        """Return it as a section, below one of its own level."""
        lines = [f"### {self.title}", "", _line(self.head), _line(["---"] * len(self.head)), *map(_line, self.rows)]
        return "\n".join([*lines, "", *self.notes])

    def show(self) -> None:
        """Print it."""
        table = Table(*self.head, title=self.title)
        for row in self.rows:
            table.add_row(*map(escape, row))
        console = Console(stderr=True, width=WIDTH)
        console.print(table)
        console.print(*self.notes, sep="\n", markup=False, highlight=False, soft_wrap=True)


def sheet(result: Result) -> Sheet:
    """Compare everybody with the fastest peer of the same league, and with the fastest one out of the box."""
    baseline = result.fastest_peer("out of the box")
    head = ["", "", f"{result.unit}/s", "range", "x fastest peer", "x out of the box", "of the limit", "peak MB"]
    rows: list[list[str]] = []
    leagues = list(dict.fromkeys(entry.league for entry in result.entries))
    for entry in sorted(result.entries, key=lambda entry: (leagues.index(entry.league), -entry.rate)):
        row = [
            entry.name,
            entry.league,
            number(entry.rate),
            f"{number(min(entry.rates))} to {number(max(entry.rates))}",
            _ratio(entry, result.fastest_peer(entry.league)),
            _ratio(entry, baseline),
            _share(entry, result),
            f"{entry.peak / 2**20:,.0f}",
        ]
        rows.append([*row, entry.remark] if result.remarks else row)
    return Sheet(result.title, [*head, result.remarks] if result.remarks else head, rows, _notes(result))


def _ratio(entry: Entry, peer: Entry | None) -> str:
    return "" if peer is None else f"{entry.rate / peer.rate:.2f}"


def _share(entry: Entry, result: Result) -> str:
    limit = result.limit(entry)
    return f"{entry.rate * result.flops / 1e9 / limit:.0%}" if result.flops and limit else ""


def _notes(result: Result) -> list[str]:
    machine, turns = result.machine, max((len(entry.seconds) for entry in result.entries), default=0)
    limits = {
        setting: ", ".join(number(limit.rate) for limit in result.limits if limit.setting == setting)
        for setting in ("plain", "bf16")
    }
    lines = [
        f"`{result.command}`, {result.date}. "
        + (f"{machine['gpu']}; " if machine.get("gpu") else "")
        + f"{machine['processor']} ({', '.join(machine['extensions'])}), "
        f"{machine['cores']} cores, {machine['memory_gb']} GB; load at the start {machine['load']:.1f}. "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items())
        + "."
    ]
    if result.limits:
        found = {"float32": limits["plain"], "bf16": limits["bf16"]}
        lines.append(
            f"Medians of {turns} turns. Matrix products in the same run: "
            + ", ".join(f"{rates} GFLOP/s in {name}" for name, rates in found.items() if rates)
            + f", by processes of {result.limits[0].peak / 2**20:,.0f} MB."
            + (f" One of the {result.unit} takes {result.flops / 1e9:.3g} GFLOP." if result.flops else "")
        )
    if result.sittings > 1:
        lines.append(f"{result.sittings} sittings, because the memory does not hold all processes at once.")
    if result.left_out:
        lines.append("Left out: " + "; ".join(f"{name} ({why})" for name, why in result.left_out.items()) + ".")
    return lines


def publish(result: Result, folder: str, name: str) -> None:
    """Show a result and keep it as JSON and Markdown."""
    result.save(Path(folder, f"{name}.json"))
    _lay_out(sheet(result), Path(folder, f"{name}.md"))


def keep(made: Sheet, folder: str, name: str, **found: Any) -> None:
    """Show a table and keep it as Markdown, and its numbers as JSON, with date, command, machine and versions."""
    date = now()
    record = {"date": date, "command": command(), "machine": machine(), "versions": versions(), **found}
    path = Path(folder, f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    _lay_out(made._replace(notes=[*made.notes, f"{date}."]), path.with_suffix(".md"))


def _lay_out(made: Sheet, path: Path) -> None:
    made.show()
    path.write_text(made.markdown() + "\n", encoding="utf-8")


def write_section(folder: str, results: Path = RESULTS) -> None:
    """Put the tables of all results of a folder between the markers of a page; the rest of it stays as it is."""
    page = results.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{results} has no lines {BEGIN!r} and {END!r} to write between.")
    tables = [path.read_text(encoding="utf-8") for path in sorted(Path(folder).rglob("*.md"))]
    text = "\n".join(tables)
    results.write_text(f"{before}{begin}\n{text}{end}{after}", encoding="utf-8")


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
