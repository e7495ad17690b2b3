"""A variant out to the Hub: its files, and a card made from the run's measurements."""
