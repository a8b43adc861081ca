"""What a federation's records say: as tables, which commands show on the terminal too, and as one HTML page."""
