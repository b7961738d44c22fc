"""The page of `explain --html`: a model's blocks in order, each with its sub-graph, in one file.

Softmaxes that are no attention are named below them.
"""

from __future__ import annotations

import html
from pathlib import Path

from onnx_fuse.ir.load import load
from onnx_fuse.report import BlockReport, Report
from onnx_fuse.show.drawing import draw
from onnx_fuse.show.surroundings import Surroundings


def render_page(model: Path, report: Report) -> str:
    """Return the whole page; it loads nothing from elsewhere.

    Raises: InvalidModel if the model cannot be read.
    """
    nodes = Surroundings(load(model))
    title = html.escape(f"Attention in {Path(report.model).name}")
    sections = "\n".join(
        _section(number, block, nodes) for number, block in enumerate(report.blocks)
    )
    return _PAGE.format(
        title=title,
        style=_STYLE,
        summary=_summary(report),
        table=_table(report),
        sections=sections or "<p>No attention was found in this model.</p>",
        others=_others(report),
    )


def _summary(report: Report) -> str:
    counts = (("fused", report.num_fused), ("declined", report.num_declined))
    return "".join(f'<span class="badge {word}">{count} {word}</span>' for word, count in counts)


def _table(report: Report) -> str:
    if not report.blocks:
        return ""
    rows = "".join(
        f'<tr><td><a href="#block-{number}">{html.escape(block.name)}</a></td>'
        f"<td>{_badge(block)}</td><td>{html.escape(_what(block) or block.reason or '')}</td></tr>"
        for number, block in enumerate(report.blocks)
    )
    return (
        "<table><thead><tr><th>Block</th><th>Outcome</th><th>What it is, or why it stays</th></tr>"
        f"</thead><tbody>{rows}</tbody></table>"
    )


def _badge(block: BlockReport) -> str:
    word = block.status if block.code is None else str(block.code)
    return f'<span class="badge {block.status}">{html.escape(word)}</span>'


def _what(block: BlockReport) -> str:
    """Return the block's known facts in one line."""
    facts: list[str] = []
    if block.kind is not None:
        facts.append(f"{block.kind}-attention")
    if block.num_heads is not None:
        grouped = block.kv_num_heads not in (None, block.num_heads)
        facts.append(f"{block.num_heads} heads" + (f" on {block.kv_num_heads}" if grouped else ""))
    if block.head_dim is not None:
        facts.append(f"head size {block.head_dim}")
    if block.batch is not None and block.seq is not None:
        facts.append(f"{block.batch} x {block.seq}")
    if block.rope is not None:
        facts.append(f"{block.rope} rope")
    if block.mask is not None:
        facts.append(f"mask: {block.mask}")
    return ", ".join(facts)


def _section(number: int, block: BlockReport, nodes: Surroundings) -> str:
    stop = block.node or ""
    anchor, *others = block.understood or (stop,)
    chosen = nodes.around(anchor, stop, *others)
    drawing = (
        draw(
            chosen,
            hidden=nodes.extents,
            understood=block.understood,
            marked=block.node,
            status=block.status,
        )
        if chosen
        else "<p>Nothing to draw.</p>"
    )
    facts = _what(block)
    words = f"<p>{html.escape(facts)}</p>" if facts else ""
    if block.status == "declined":
        words += (
            f'<p class="reason">{html.escape(block.reason or "")}</p>'
            f'<p class="hint">{html.escape(block.hint or "")}</p>'
        )
    words += "".join(
        f"<p>{each.part} stays outside: {html.escape(each.reason)}</p>" for each in block.outside
    )
    words += _steps(block)
    if block.node is not None:
        place = "stopped at" if block.status == "declined" else "stands at"
        words += f"<p>{place} <code>{html.escape(block.node)}</code></p>"
    return (
        f'<section id="block-{number}" class="{block.status}"><h2>{html.escape(block.name)} '
        f'{_badge(block)}</h2>{words}<div class="drawing">{drawing}</div></section>'
    )


def _steps(block: BlockReport) -> str:
    """Return how far a block was understood that isn't one."""
    if not block.is_stopped:
        return ""
    *done, last = (step.name for step in block.steps)
    marks = [f'<span class="badge fused">{name}</span>' for name in done]
    marks.append(f'<span class="badge declined">{last}</span>')
    return f"<p>understood {''.join(marks[:-1]) or 'nothing'} stopped in {marks[-1]}</p>"


def _others(report: Report) -> str:
    """Return the softmaxes that are no attention."""
    told = "".join(f"<li>{html.escape(sentence)}</li>" for sentence in report.tell_others())
    return f"<h2>Softmaxes that are no attention</h2><ul>{told}</ul>" if told else ""


_STYLE = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --text: #1c2024; --pale: #60656d; --line: #d5d9de;
  --box: #eef1f5; --view: #ffffff; --input: #e4ecfa; --edge: #8b919a;
  --fused: #18713f; --fused-box: #d3f0de; --declined: #a33a12; --declined-box: #fde0d2;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15181c; --text: #e6e9ec; --pale: #9aa1a9; --line: #343a41;
    --box: #272c33; --view: #1a1e23; --input: #20304c; --edge: #7b838d;
    --fused: #6fd79b; --fused-box: #173d28; --declined: #ffa37d; --declined-box: #4d2414;
  }
}
body { margin: 0 auto; padding: 24px 16px 64px; max-width: 1100px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 22px; margin: 0 0 8px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 0 0 4px; overflow-wrap: anywhere; }
p, li { margin: 2px 0; color: var(--pale); overflow-wrap: anywhere; }
p.reason { color: var(--declined); }
p.hint::before { content: "Hint: "; }
table { border-collapse: collapse; width: 100%; margin: 16px 0 24px; }
th, td { text-align: left; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line);
  overflow-wrap: anywhere; vertical-align: top; }
a { color: inherit; }
code { font-size: 13px; overflow-wrap: anywhere; }
section { border: 1px solid var(--line); border-left-width: 5px; border-radius: 6px;
  padding: 12px 16px; margin: 0 0 20px; }
section.fused { border-left-color: var(--fused); }
section.declined { border-left-color: var(--declined); }
.badge { display: inline-block; border-radius: 10px; padding: 0 9px; font-size: 13px;
  font-weight: 600; margin-right: 6px; white-space: nowrap; }
.badge.fused { background: var(--fused-box); color: var(--fused); }
.badge.declined { background: var(--declined-box); color: var(--declined); }
.drawing { overflow-x: auto; margin-top: 10px; }
svg text { font: 11px ui-monospace, monospace; text-anchor: middle; fill: var(--text); }
svg text.op { font-weight: 600; }
svg text.name { fill: var(--pale); }
svg rect { fill: var(--box); stroke: var(--line); }
svg .view rect { fill: var(--view); stroke-dasharray: 3 2; }
svg .view text { fill: var(--pale); }
svg .input rect { fill: var(--input); }
svg .fused rect { fill: var(--fused-box); stroke: var(--fused); stroke-width: 2; }
svg .declined rect { fill: var(--declined-box); stroke: var(--declined); stroke-width: 2; }
svg .understood rect { stroke: var(--fused); }
svg .edge { fill: none; stroke: var(--edge); stroke-width: 1.2; }
svg marker path { fill: var(--edge); }
.legend { margin-bottom: 14px; }
.legend span { margin-right: 14px; white-space: nowrap; }
.legend i { display: inline-block; width: 14px; height: 10px; border-radius: 2px; margin-right: 5px;
  border: 1px solid var(--line); background: var(--box); }
.legend i.input { background: var(--input); border-radius: 5px; }
.legend i.view { background: var(--view); border-style: dashed; }
.legend i.understood { border-color: var(--fused); }
.legend i.fused { background: var(--fused-box); border-color: var(--fused); }
.legend i.declined { background: var(--declined-box); border-color: var(--declined); }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<svg width="0" height="0" style="position:absolute"><defs>
<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto">
<path d="M0 0L8 4L0 8z"/>
</marker>
</defs></svg>
<h1>{title}</h1>
<p>{summary}</p>
{table}
<p class="legend">
<span><i class="input"></i>comes from outside</span>
<span><i></i>arithmetic</span>
<span><i class="view"></i>turns or converts</span>
<span><i class="understood"></i>understood</span>
<span><i class="fused"></i>where a fused block stands</span>
<span><i class="declined"></i>where a declined block stopped</span>
</p>
{sections}
{others}
</body>
</html>
"""
