"""Typical wrong answers to lesson 3: what, the solution's text, what stands there, the verdict."""

CENTER = '"Center": (np.array([[1.0, 2.0], [3.0, 5.0]]),),'
HUBER = '"Huber": (np.array([-5.0, 1.0, 5.0]),),'
SOFTMAX = '"Softmax": (np.array([0.5, -0.3, 1.0]),),'

WRONG = [
    ("one row", CENTER, '"Center": (np.array([1.0, 2.0, 4.0]),),', "A single row cannot"),
    ("near zero", HUBER, '"Huber": (np.array([1.0, -2.0]),),', "lie on the parabola"),
    ("positive only", HUBER, '"Huber": (np.array([1.0, 7.0]),),', "two ends"),
    (
        "nan for proof",
        HUBER,
        '"Huber": (np.array([1.0, np.nan]),),',
        "proves nothing against Huber: the inputs are not finite",
    ),
    ("too large", HUBER, '"Huber": (np.array([1.0, -1e12]),),', "proves nothing.*out of digits"),
    ("integers", HUBER, '"Huber": (np.array([1, -5]),),', "expected float64"),
    ("a string", HUBER, '"Huber": "far left",', "is str, expected a NumPy array"),
    ("an honest kink", HUBER, '"LeakyRelu": (np.zeros(2),),', "LeakyRelu is innocent.*kink"),
    ("a bare number", SOFTMAX, '"Softmax": (1.5,),', "proves nothing.*backward raised AxisError"),
    ("equal numbers", SOFTMAX, '"Softmax": (np.ones((2, 3)),),', "equal numbers in a row"),
    ("two of three", CENTER, "", "1 of 3 wrong gradients are still at large"),
    ("an innocent", CENTER, '"Gate": (np.array([1.0, -2.0]),),', "Gate is innocent: it passes"),
    ("a kink", CENTER, '"Larger": (np.ones(3), np.ones(3)),', "Larger is innocent.*kink"),
    ("a name that is none", CENTER, '"Centre": (np.ones((2, 2)),),', "did you mean 'Center'"),
    ("one input of two", CENTER, '"Hypot": (np.ones(3),),', "takes 2 inputs, here are 1"),
    ("no numbers", CENTER, '"Center": (np.zeros((0, 2)),),', "no numbers in the inputs"),
    ("names without evidence", "    return {\n", '    return ["Center"]\n    {\n', "evidence"),
]
