"""From a captured product to a quantized linear: what multiplies, how its weight and its input are read, and the rewrite."""
