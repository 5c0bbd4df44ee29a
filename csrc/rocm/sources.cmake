# The torch boundary of the RDNA3 kernel, and with a ROCm torch its device code, are listed here.
