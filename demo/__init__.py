"""The demonstration: real models quantized by compressed-tensors, run packed through torch.compile, compared with the float one."""
