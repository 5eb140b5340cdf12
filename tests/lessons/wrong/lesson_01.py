"""Typical wrong answers to lesson 1: what, the solution's text, what stands there, the verdict."""

RETURN = "return Value(t, (self,), (1 - t * t,))"

WRONG = [
    ("slope without the square", RETURN, "return Value(t, (self,), (1 - t,))", "square is missing"),
    ("square of the input", RETURN, "return Value(t, (self,), (1 - self.data**2,))", "not of x"),
    ("no inputs", RETURN, "return Value(t)", "does not name its input"),
    ("no tuples", RETURN, "return Value(t, self, 1 - t * t)", "tuples, even of one"),
    ("a bare number", RETURN, "return t", "expected a Value"),
    ("no return", RETURN, "Value(t, (self,), (1 - t * t,))", "is a `return` missing"),
    (
        "the formula, which overflows",
        "t = math.tanh(self.data)",
        "e = math.exp(self.data); t = (e - 1 / e) / (e + 1 / e)",
        "OverflowError.*e.800 is more than a float can hold",
    ),
    (
        "a formula that is no number far away",
        "t = math.tanh(self.data)",
        "t = math.tanh(self.data) if abs(self.data) < 700 else math.nan",
        "is nan, .*e.800 is more",
    ),
    (
        "its own gradient at once",
        RETURN,
        "self.grad += 1 - t * t; return Value(t)",
        "does not name its input",
    ),
    (
        "a Value that cannot be made",
        "self.grad = 0.0",
        "raise ValueError('mine')",
        "`Value` stopped when called with 0.0: ValueError: mine",
    ),
    ("no class", "class Value:", "class Number:", "there is no `Value`.*brings the class back"),
    (
        "a slope that is no number far away",
        RETURN,
        "return Value(t, (self,), (1 - t * t if abs(t) < 1 else math.nan,))",
        "gradient of tanh.800.0. is nan, expected 0",
    ),
    (
        "written over the input",
        RETURN,
        "self.data = t; " + RETURN,
        "changes the value it is called on",
    ),
    ("no product", "def __mul__", "def product", "`use_twice` stopped.*unsupported operand"),
    ("no walk", "def backward", "def walk", "`backward` stopped.*no attribute 'backward'"),
    ("sigmoid", "t = math.tanh(self.data)", "t = 1 / (1 + math.exp(-self.data))", "expected 0"),
]
