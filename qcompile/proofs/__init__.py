"""How it is known that a result is right: a reading of a weight, a kernel, a rewrite, each compared by value."""
