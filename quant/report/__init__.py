"""From metrics to figures, tables and a document."""
