"""Lesson 8, solved: four arrays per weight, sixteen per layer, and what stands on top."""


def peak_bytes(vocabulary, context, layers, width, batch, recompute):
    parameters = 12 * layers * width**2 + (vocabulary + context) * width
    array = 4 * batch * context * width  # bytes of one array of activations
    if recompute:
        arrays = layers + 16 + 5  # every layer's input; one layer, and gradients inside it
    else:
        arrays = 16 * layers + 5  # everything; gradients inside the last layer
    return 16 * parameters + arrays * array
