"""From an ONNX file alone to what has to be known of its pose net."""
