"""From a model to other programs and machines: C for microcontrollers, NIR for simulators, ONNX, a chip's map."""
