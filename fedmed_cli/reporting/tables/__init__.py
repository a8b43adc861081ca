"""Records as tables and sentences, for the terminal and for the report."""
