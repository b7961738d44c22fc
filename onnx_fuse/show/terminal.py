"""Turns reports into text for a terminal or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnx_fuse.report import BlockReport, Report, VerifyReport

if TYPE_CHECKING:
    from onnx_fuse.runtime.bench import BenchReport
    from onnx_fuse.runtime.timing import Spread

# A pipe has no width; lines there are as long as they are, for grep to find.
_PIPE_WIDTH = 10_000
# What a table needs to be readable: a narrower terminal breaks the lines itself.
_LEAST_WIDTH = 72
_COLOURS = {"fused": "green", "declined": "yellow"}
_MOST_FAILURES = 5  # that are shown of one verification
# How the sessions of a verification are called.
_WHERE = {"kernel": "with the kernels", "plain": "in a plain session"}
# The third quartile over the first one, from which on a comparison says little.
_UNSTEADY = 1.5


def make_console(*, stderr: bool = False) -> Console:
    """Return a console that colours and wraps only on a terminal."""
    target = sys.stderr if stderr else sys.stdout
    if not target.isatty():
        # Not even if FORCE_COLOR is set, which rich would take for a terminal.
        return Console(
            file=target, width=_PIPE_WIDTH, force_terminal=False, highlight=False, soft_wrap=True
        )
    console = Console(file=target, highlight=False)
    if not stderr:
        console.width = max(console.width, _LEAST_WIDTH)
    return console


def print_result(result: RenderableType) -> None:
    """Print to stdout; lines in a pipe end where their text ends, also in a table."""
    console = make_console()
    if console.is_terminal:
        console.print(result)
        return
    with console.capture() as captured:
        console.print(result)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in captured.get().splitlines())


def render_report(report: Report, *, details: bool = False) -> RenderableType:
    """Return one line a block, then what was declined and why, then the sum.

    Declined blocks of the same reason are shown together unless `details` is set, which also tells
    why projections stay outside of fused blocks, and of softmaxes that are no attention.
    """
    parts: list[RenderableType] = []
    if report.blocks:
        parts += [_blocks(report.blocks), Text()]
    declined = [block for block in report.blocks if block.status == "declined"]
    in_part = [block for block in report.blocks if block.outside] if details else []
    if in_part:
        parts += [*_in_part(in_part), Text()]
    if declined:
        parts += [*_declined(declined, details), Text()]
    if details and report.others:
        parts += [*(Text(f"no attention  {told}") for told in report.tell_others()), Text()]
    parts.append(_summary(report))
    parts.extend(_notes(report.notes))
    if report.verify is not None:
        parts.append(render_verify(report.verify))
    return Group(*parts)


def _blocks(blocks: Sequence[BlockReport]) -> Table:
    columns = ["status", "block", "kind", "heads", "head dim", "batch x seq", "rope", "mask"]
    tells_outside = any(block.outside for block in blocks)
    table = _table(*columns, *(["outside"] if tells_outside else []))
    for block in blocks:
        heads = _word(block.num_heads)
        if block.kv_num_heads not in (None, block.num_heads):
            heads = f"{heads}/{block.kv_num_heads}"
        outside = " ".join(each.part for each in block.outside) or None
        table.add_row(
            Text(block.status, style=_COLOURS[block.status]),
            Text(block.name),
            _word(block.kind),
            heads,
            _word(block.head_dim),
            _size(block),
            _word(block.rope),
            _word(block.mask or ("none" if block.status == "fused" else None)),
            *([_word(outside)] if tells_outside else []),
        )
    return table


def _in_part(blocks: Iterable[BlockReport]) -> Iterable[RenderableType]:
    """Yield why projections stay outside of blocks."""
    for block in blocks:
        yield Text.assemble(("in part   ", _COLOURS["fused"]), block.name)
        for each in block.outside:
            yield Text(f"          {each.part} stays outside: {each.reason}")


def _declined(blocks: Sequence[BlockReport], details: bool) -> Iterable[RenderableType]:
    groups: dict[tuple[object, ...], list[BlockReport]] = {}
    for block in blocks:
        same = (block.name,) if details else (block.code, block.reason)
        groups.setdefault(same, []).append(block)
    for group in groups.values():
        block = group[0]
        line = Text("declined  ", style=_COLOURS["declined"])
        line.append(str(block.code), style="bold")
        line.append(f"  {block.name}", style="default")
        if len(group) > 1:
            line.append(f" and {len(group) - 1} more", style="default")
        yield line
        yield Text(f"          {block.reason}")
        if details and block.is_stopped:
            *done, last = (step.name for step in block.steps)
            understood = f"understood: {', '.join(done)}; " if done else ""
            yield Text(f"          {understood}stopped in {last} at '{block.node}'")
        yield Text(f"          hint: {block.hint}")


def _summary(report: Report) -> Text:
    total = len(report.blocks)
    if not total:
        text = Text("0 blocks: no attention was found")
    else:
        text = Text(f"{report.num_fused} of {total} {_plural(total, 'block')} fused", style="bold")
        if report.num_declined:
            text.append(f", {report.num_declined} declined")
    if report.output is not None:
        text.append(f" -> {report.output}")
    return text


def render_verify(report: VerifyReport) -> RenderableType:
    """Return the verdict in one line, then each failure and what could not be checked."""
    lines: list[RenderableType] = []
    if report.passed:
        where = " and ".join(_WHERE[run] for run in report.runs)
        lines.append(
            Text.assemble(
                ("verified", "green"),
                f": {report.cases} {_plural(report.cases, 'case')} {where}, largest error "
                f"{report.max_abs_err:.2g} (allowed {report.tolerance:.2g})",
            )
        )
    else:
        lines.append(Text("verification failed", style="bold red"))
        shown = report.failures[:_MOST_FAILURES]
        lines.extend(Text(f"  {failure}") for failure in shown)
        if len(report.failures) > len(shown):
            lines.append(Text(f"  and {len(report.failures) - len(shown)} more"))
    lines.extend(_notes(report.notes))
    return Group(*lines)


def _notes(notes: Iterable[str]) -> list[Text]:
    return [Text(f"note: {note}", style="yellow") for note in notes]


def render_bench(report: BenchReport) -> RenderableType:
    """Return one line a point: times before and after, and the ratio with its quartiles."""
    table = _table("threads", "seq", "before", "after", "faster by", "quartiles", "rounds")
    for row in report.rows:
        style = "green" if row.ratio.low >= 1 else "red" if row.ratio.high < 1 else ""
        table.add_row(
            str(row.threads),
            "static" if row.seq is None else str(row.seq),
            _time(row.before_us),
            _time(row.after_us),
            Text(f"{row.ratio.median:.2f}x", style=style),
            f"{row.ratio.low:.2f} .. {row.ratio.high:.2f}",
            str(row.rounds),
        )
    notes = list(report.notes)
    if any(row.ratio.high > _UNSTEADY * row.ratio.low for row in report.rows):
        notes.append("the ratios vary a lot: other work runs here, measure again when it is done")
    return Group(table, *_notes(notes))


def render_facts(facts: Mapping[str, str]) -> Table:
    """Return names and values, one a line."""
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name.replace("_", " "), style="bold"), Text(value))
    return table


def _time(spread: Spread) -> str:
    return f"{spread.median:.0f} us" if spread.median < 10_000 else f"{spread.median / 1e3:.1f} ms"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _size(block: BlockReport) -> str:
    sizes = (block.batch, block.seq)
    return "-" if sizes == (None, None) else " x ".join(map(_word, sizes))


def _word(value: object) -> str:
    return "-" if value is None else str(value)


def _plural(count: int, word: str) -> str:
    return word if count == 1 else word + "s"
