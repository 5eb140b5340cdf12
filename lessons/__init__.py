"""Ten lessons, from one derivative to streaming 175B parameters: notebooks that run the real code.

    python -m lessons            opens them in JupyterLab
    python -m lessons.check 3    looks at your answer to the exercise of lesson 3
    python -m lessons.build 3    runs lesson 3's text source and writes its notebook

`NN_name.py` is a lesson's source; `NN_name.ipynb`, made from it, has the outputs. Exercises are
answered in `exercises/lesson_NN.py`, judged by `checks/lesson_NN.py`, and solved in `solutions/`.
"""
