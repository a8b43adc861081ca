"""One thin file a subcommand: parse, call the core once, show."""
