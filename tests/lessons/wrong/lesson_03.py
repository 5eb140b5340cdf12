"""Typical wrong answers to lesson 3: what, the solution's text, what stands there, the verdict."""

CENTER = '"Center": (np.array([[1.0, 2.0], [3.0, 5.0]]),),'
LEAKY = '"LeakyRelu": (np.array([-1.0, 2.0]),),'
SOFTMAX = '"Softmax": (np.array([0.5, -0.3, 1.0]),),'

WRONG = [
    ("one row", CENTER, '"Center": (np.array([1.0, 2.0, 4.0]),),', "With a single row"),
    ("positive only", LEAKY, '"LeakyRelu": (np.array([1.0, 2.0]),),', "half of the function"),
    ("equal numbers", SOFTMAX, '"Softmax": (np.ones((2, 3)),),', "equal numbers in a row"),
    ("two of three", CENTER, "", "1 of 3 wrong gradients are still at large"),
    ("an innocent", CENTER, '"Cube": (np.array([1.0, -2.0]),),', "Cube is innocent: it passes"),
    ("a kink", CENTER, '"Larger": (np.ones(3), np.ones(3)),', "Larger is innocent.*kink"),
    ("a name that is none", CENTER, '"Centre": (np.ones((2, 2)),),', "did you mean 'Center'"),
    ("one input of two", CENTER, '"Hypot": (np.ones(3),),', "cannot run on these inputs"),
    ("no numbers", CENTER, '"Center": (np.zeros((0, 2)),),', "no numbers in the inputs"),
    ("names without evidence", "    return {\n", '    return ["Center"]\n    {\n', "evidence"),
]
