"""What qcompile knows of torch's private side: how graphs and constants are named, traced, taken apart, wrapped and compiled."""
