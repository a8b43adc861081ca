"""Who a file comes from, and what a workspace proves."""
