"""The report of an experiment: tables and pictures, as Markdown, CSV, PNG and one HTML file.

The HTML is written here: a template of jinja2 would be as long, and one more dependency.
"""

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from train.files import write_atomically

Cell: TypeAlias = str | int | float | None

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80em; margin: 2em auto; padding: 0 1em; }
h1, h2, p { overflow-wrap: anywhere; }
table { border-collapse: collapse; display: block; margin: 1em 0; overflow-x: auto; }
th, td { padding: .25em .75em; border-bottom: 1px solid #ccc; text-align: right; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; }
img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .75em; white-space: pre-wrap; overflow-wrap: anywhere; }
"""


class Table(NamedTuple):
    """A table; the first column names the rows."""

    name: str  # name of its file
    title: str
    columns: Sequence[str]  # with units
    rows: Sequence[Sequence[Cell]]  # as long as the columns; None is empty
    note: str = ""  # below the table


class Picture(NamedTuple):
    """A picture file."""

    path: Path  # PNG, in the report's folder
    title: str


class Report(NamedTuple):
    """The content of a report."""

    title: str
    text: Sequence[str]  # paragraphs: what was run, and the findings
    tables: Sequence[Table]
    pictures: Sequence[Picture] = ()
    conditions: Sequence[tuple[str, str]] = ()  # command, revision, machine, seeds: name and value


def write_report(report: Report, directory: Path) -> Path:
    """Writes `report.md`, one CSV per table, and the self-contained `report.html`.

    Args:
        report: the content.
        directory: the folder to write to; it already has the pictures.

    Returns:
        The path of the HTML file.
    """
    for table in report.tables:
        write_atomically(directory / f"{table.name}.csv", _csv(table))
    write_atomically(directory / "report.md", _markdown(report))
    write_atomically(directory / "report.html", _html(report))
    return directory / "report.html"


def mean_and_spread(values: Sequence[float], digits: int = 4) -> str:
    """Mean and sample standard deviation, `1.2346 ± 0.0012`; a single value has no deviation.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0]), mean_and_spread([1.5], digits=2)
        ('2.0000 ± 1.0000', '1.50')
    """
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    spread = (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"


def text_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table with aligned columns.

    Example:
        >>> print(text_table(["optimizer", "loss"], [["muon", 0.25], ["sgdm", None]]))
        | optimizer | loss |
        | --------- | ---: |
        | muon      | 0.25 |
        | sgdm      |      |
    """
    lines = [[str(column) for column in columns], *([_text(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    cells = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    rule = ["-" * w if not i else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [cells[0], rule, *cells[1:]])


def _text(cell: Cell) -> str:
    """A cell as text; floats with four significant digits."""
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _csv(table: Table) -> str:
    """A table as CSV, with all digits."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.rows)
    return buffer.getvalue()


def _markdown(report: Report) -> str:
    """The report as Markdown, with links to the pictures."""
    parts = [f"# {report.title}", *report.text]
    parts += ["\n".join(f"- {name}: `{value}`" for name, value in report.conditions)]
    for table in report.tables:
        parts += [f"## {table.title}", text_table(table.columns, table.rows)]
        parts += [table.note] if table.note else []
    for picture in report.pictures:
        parts.append(f"![{picture.title}]({picture.path.name})")
    return "\n\n".join(part for part in parts if part) + "\n"


def _html(report: Report) -> str:
    """The report as one HTML page with embedded pictures."""
    escape = html.escape
    parts = [f"<h1>{escape(report.title)}</h1>"]
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in report.text]
    lines = "\n".join(f"{name}: {value}" for name, value in report.conditions)
    parts += [f"<pre>{escape(lines)}</pre>"] if lines else []
    for table in report.tables:
        head = "".join(f"<th>{escape(str(column))}</th>" for column in table.columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(_text(cell))}</td>' for cell in row)}</tr>\n"
            for row in table.rows
        )
        parts.append(f"<h2>{escape(table.title)}</h2>\n<table><tr>{head}</tr>\n{body}</table>")
        parts += [f"<p>{escape(table.note)}</p>"] if table.note else []
        parts.append(f"<p>{_download(f'{table.name}.csv', _csv(table).encode())}</p>")
    for picture in report.pictures:
        data = base64.b64encode(picture.path.read_bytes()).decode()
        parts.append(
            f"<h2>{escape(picture.title)}</h2>\n"
            f'<img alt="{escape(picture.title)}" src="data:image/png;base64,{data}">'
        )
        files = [picture.path.with_suffix(suffix) for suffix in (".svg", ".pdf")]
        links = [_download(file.name, file.read_bytes()) for file in files if file.exists()]
        parts += [f"<p>{' '.join(links)}</p>"] if links else []
    page = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{_STYLE}</style>\n{page}\n</html>\n"
    )


def _download(name: str, content: bytes) -> str:
    """A link that holds a file, so that the page needs no other."""
    kind = {".csv": "text/csv", ".pdf": "application/pdf", ".svg": "image/svg+xml"}[
        Path(name).suffix
    ]
    data = base64.b64encode(content).decode()
    name = html.escape(name)
    return f'<a download="{name}" href="data:{kind};base64,{data}">{name}</a>'
