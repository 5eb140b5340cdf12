"""The picture of a graph: well-formed SVG that shows every op, leaf and shape."""

import xml.etree.ElementTree as ET

import numpy as np

import tinygrad_edu as tg
from tinygrad_edu.graph import LIMIT, graph_svg

NS = "{http://www.w3.org/2000/svg}"


def drawn(tensor):
    root = ET.fromstring(graph_svg(tensor))
    texts = [text.text for text in root.iter(f"{NS}text")]
    boxes = [box for box in root.iter(f"{NS}rect") if box.get("class")]
    return root, texts, boxes


def test_ops_leaves_and_shapes_are_drawn():
    layer = tg.nn.Linear(3, 4)
    y = layer(tg.Tensor(np.ones((2, 3), np.float32))).tanh().sum()
    root, texts, boxes = drawn(y)
    for text in ("Linear", "Tanh", "Sum", "Parameter 4x3", "Parameter 4", "2x4", "Tensor scalar"):
        assert text in texts
    kinds = sorted(box.get("class") for box in boxes)
    assert kinds == ["leaf", "leaf", "op", "op", "op", "result"]
    arrows = [path for path in root.iter(f"{NS}path") if path.get("marker-end")]
    assert len(arrows) == 5
    width, height = float(root.get("width")), float(root.get("height"))
    for box in boxes:  # all inside the picture, none on top of another
        x, y, w, h = (float(box.get(key)) for key in ("x", "y", "width", "height"))
        assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
    places = [(float(b.get("x")), float(b.get("y"))) for b in boxes]
    assert len(set(places)) == len(places)


def test_other_dtypes_are_named_and_text_is_escaped():
    weird = type("A<B", (tg.Function,), {})
    weird.forward = staticmethod(lambda ctx, x: x + 0)
    x = tg.Tensor(np.ones(2), requires_grad=True)
    _, texts, _ = drawn(weird.apply(x))
    assert "A<B" in texts
    assert "Tensor 2 float64" in texts


def test_a_large_graph_shows_its_end_and_counts_the_rest():
    y = tg.Tensor(1.0, requires_grad=True)
    for _ in range(30_000):
        y = y + 0.0
    _, texts, boxes = drawn(y)
    assert sum(box.get("class") == "op" for box in boxes) == LIMIT
    assert f"{30_000 - LIMIT:,} earlier ops are not shown" in texts


def test_a_consumed_graph_draws_what_is_left():
    x = tg.Tensor([1.0, 2.0], requires_grad=True)
    h = x.exp()
    h.sum().backward()
    _, texts, boxes = drawn((h * 2).sum())
    assert "Exp (consumed)" in texts
    assert any("used up" in text for text in texts)
    assert "Multiply" in texts and "consumed" in {box.get("class") for box in boxes}
    assert "Exp (consumed)" in drawn(h)[1]


def test_notebooks_show_a_graph_only_where_there_is_one():
    x = tg.Tensor([1.0], requires_grad=True)
    assert x._repr_svg_() is None
    assert (x * 2)._repr_svg_().startswith("<svg")
    assert "Tensor 1" in graph_svg(x)


def test_drawing_leaves_the_graph_usable():
    x = tg.Tensor([1.0, 2.0], requires_grad=True)
    y = (x * x + x).sum()
    graph_svg(y)
    y.backward()
    assert x.grad.tolist() == [3, 5]
