"""Speed: timing a variant against the base in alternation, peak memory, and the bandwidth of this machine's memory."""
