"""What runs: the compilation of one graph, whole or in regions, and the code that it becomes with its packed weights."""
