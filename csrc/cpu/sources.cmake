# Sources and per-file ISA flags of the CPU kernels are listed here.
