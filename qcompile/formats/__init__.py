"""Storage formats of quantized weights: how each lies in memory, and which leaves of a cone may be such a weight."""
