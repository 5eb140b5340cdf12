"""Lesson 1: add tanh to the tape.

tanh(x) = (e^x - e^-x) / (e^x + e^-x), and its slope is 1 - tanh(x)^2. It has to hold for any x,
for 800 as well.

Write `Value.tanh`. Then: python -m lessons.check 1
"""


class Value:
    """A number that remembers how it was made."""

    def __init__(self, data, inputs=(), slopes=()):
        self.data, self.inputs, self.slopes = float(data), inputs, slopes
        self.grad = 0.0  # d result / d self, once `backward` has run

    def __add__(self, other):
        return Value(self.data + other.data, (self, other), (1.0, 1.0))

    def __mul__(self, other):
        return Value(self.data * other.data, (self, other), (other.data, self.data))

    def tanh(self):
        raise NotImplementedError("Make a Value from the number, its inputs, and its slopes.")

    def backward(self):
        """Fills in `grad` of everything that this value was made from."""
        order, seen, stack = [], set(), [(self, False)]
        while stack:  # a value comes after all that it was made from
            value, inputs_done = stack.pop()
            if inputs_done:
                order.append(value)
            elif value not in seen:
                seen.add(value)
                stack.append((value, True))
                stack += [(source, False) for source in value.inputs]
        self.grad = 1.0  # d self / d self
        for value in reversed(order):
            for source, slope in zip(value.inputs, value.slopes):
                source.grad += slope * value.grad  # the chain rule
