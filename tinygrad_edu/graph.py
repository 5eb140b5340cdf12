"""A picture of the tape: `graph_svg(tensor)` draws the ops that made a tensor, for notebooks.

Data flows from left to right. A node stands one column right of the last of its inputs; within a
column, nodes are ordered by the mean height of their inputs, which keeps edges short. The picture
brings its own background, so it reads the same on light and dark pages.
"""

from html import escape
from typing import Any

from .tape import Context
from .tensor import Tensor

LIMIT = 150  # ops drawn; of a larger graph, the last ones
GAP, ROW, HEIGHT, MARGIN, CHAR = 78, 52, 34, 20, 7.2  # pixels
STYLE = """
.tape text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#22303c;text-anchor:middle}
.tape text.small{font-size:10px;fill:#5d6b78} .tape text.note{text-anchor:start}
.tape .op{fill:#e3edf9;stroke:#4a7fb8} .tape .leaf{fill:#fdf0d5;stroke:#c58b2a}
.tape .result{fill:#e2f3e4;stroke:#4b9a58} .tape .tip{fill:#8a97a3;stroke:none}
.tape .consumed{fill:#ececec;stroke:#999;stroke-dasharray:4 3}
.tape path{fill:none;stroke:#8a97a3;stroke-width:1.3}"""


def describe(shape: tuple[int, ...], dtype: Any) -> str:
    """(2, 3) and float32 -> "2x3"; other dtypes are named."""
    text = "x".join(map(str, shape)) or "scalar"
    return text if str(dtype) == "float32" else f"{text} {dtype}"


def collect(root: Context) -> tuple[list[Context], int]:
    """Every op at or before `root`, in the order they ran: the last `LIMIT`, and how many more."""
    seen, stack = {root}, [root]
    while stack:
        for target, _ in inputs_of(stack.pop()):
            if isinstance(target, Context) and target not in seen:
                seen.add(target)
                stack.append(target)
    ops = sorted(seen, key=lambda op: op._number)
    return ops[-LIMIT:], len(ops[:-LIMIT])


def inputs_of(node: Any) -> list[tuple[Any, str]]:
    """(what made it, label) of each input on the tape; a consumed op no longer knows any."""
    if not isinstance(node, Context) or node._saved is None:
        return []
    edges = zip(node._edges, node.input_shapes, node._dtypes, strict=True)
    return [(edge[0], describe(*like)) for edge, *like in edges if edge is not None]


def label(node: Any) -> tuple[str, str]:
    """The CSS class and the text of a node."""
    if isinstance(node, Context):
        name = node._op.__name__
        return ("consumed", f"{name} (consumed)") if node._saved is None else ("op", name)
    return "leaf", f"{type(node).__name__} {describe(node.shape, node.dtype)}"


def layers(ops: list[Context], edges: dict[Any, list]) -> list[list[Any]]:
    """Nodes by column, from left to right, ordered within a column to keep edges short."""
    column: dict[Any, int] = {}
    for op in ops:
        column[op] = 1 + max((column.get(source, 0) for source, _ in edges[op]), default=-1)
    for op in reversed(ops):  # a leaf stands just left of its first user
        for source, _ in edges[op]:
            if not isinstance(source, Context):
                column[source] = min(column[op] - 1, column.get(source, column[op]))
    last = max(column.values())
    columns = [[node for node in column if column[node] == i] for i in range(last + 1)]
    height: dict[Any, float] = {}
    for nodes in columns:
        for node in nodes:
            known = [height[s] for s, _ in edges.get(node, ()) if s in height]
            height[node] = sum(known) / len(known) if known else 1e9
        nodes.sort(key=height.__getitem__)
        height.update((node, i - (len(nodes) - 1) / 2) for i, node in enumerate(nodes))
    return columns


def graph_svg(tensor: Tensor) -> str:
    """The graph that made `tensor`, as SVG: ops rounded, leaves square, shapes beside the edges."""
    ops, left_out = ([], 0) if tensor._made_by is None else collect(tensor._made_by[0])
    drawn = {*ops, *(s for op in ops for s, _ in inputs_of(op) if not isinstance(s, Context))}
    edges = {op: [edge for edge in inputs_of(op) if edge[0] in drawn] for op in ops}
    columns = [*(layers(ops, edges) if ops else []), [tensor]]
    edges[tensor] = [(op, "") for op in ops[-1:]]
    labels = {node: label(node) for nodes in columns for node in nodes}
    labels[tensor] = ("result" if ops else "leaf", labels[tensor][1])
    notes = [f"{left_out:,} earlier ops are not shown"] if left_out else []
    if any(css == "consumed" for css, _ in labels.values()):
        notes.append("backward() has used up the graph before the ops drawn dashed")
    body, lines, place = [], [], {}
    top, x, tallest = MARGIN + 16 * len(notes), MARGIN, max(map(len, columns)) * ROW
    for nodes in columns:
        width = max(len(labels[node][1]) for node in nodes) * CHAR + 22
        for i, node in enumerate(nodes):
            y = top + tallest / 2 + (i - (len(nodes) - 1) / 2) * ROW
            place[node] = (x, x + width, y)
            css, text = labels[node]
            round_ = 3 if css == "leaf" else HEIGHT / 2 if css != "result" else 8
            body.append(
                f'<rect class="{css}" x="{x:.0f}" y="{y - HEIGHT / 2:.0f}" width="{width:.0f}" '
                f'height="{HEIGHT}" rx="{round_:.0f}"/>'
                f'<text x="{x + width / 2:.0f}" y="{y + 4:.0f}">{escape(text)}</text>'
            )
        x += width + GAP
    for node, sources in edges.items():
        for k, (source, text) in enumerate(sources):
            (_, x0, y0), (x1, _, y1) = place[source], place[node]
            y1 += (k - (len(sources) - 1) / 2) * 8  # inputs arrive one below the other
            bend = max(24, (x1 - x0) / 2)
            lines.append(
                f'<path d="M{x0:.0f} {y0:.0f}C{x0 + bend:.0f} {y0:.0f} {x1 - bend:.0f} {y1:.0f} '
                f'{x1:.0f} {y1:.0f}" marker-end="url(#tip)"/>'
            )
            if text and isinstance(source, Context):
                at = f'x="{x0 + GAP / 2:.0f}" y="{y0 + 0.35 * (y1 - y0) - 5:.0f}"'
                body.append(f'<text class="small" {at}>{text}</text>')
    wide = max(x - GAP + MARGIN, 2 * MARGIN + max((len(note) for note in notes), default=0) * CHAR)
    tall = top + tallest + MARGIN
    for i, note in enumerate(notes):
        body.append(f'<text class="note" x="{MARGIN}" y="{MARGIN + 16 * i + 4}">{note}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="tape" width="{wide:.0f}" '
        f'height="{tall:.0f}" viewBox="0 0 {wide:.0f} {tall:.0f}"><style>{STYLE}</style>'
        '<defs><marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
        f'<rect width="100%" height="100%" rx="8" fill="#fbfaf7"/>{"".join(lines + body)}</svg>'
    )
