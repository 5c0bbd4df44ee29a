"""Graph tools that several passes share: nodes, walks, text, slices of a value, and runs at smaller sizes."""
