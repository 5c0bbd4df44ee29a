"""The report: its rows, the book that keeps them, its forms as text, table and drawing, and rows for what no graph explains."""
