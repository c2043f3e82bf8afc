"""HTTP: parses and answers, decides nothing."""
